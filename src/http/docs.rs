//! The page for reading and trying the API: Swagger UI, served from this binary.
//!
//! It needs no network, and a strict Content-Security-Policy lets it load nothing from anywhere
//! else. It holds no session: whoever tries a request pastes a bearer token.

use std::sync::Arc;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, LOCATION, REFERRER_POLICY};
use actix_web::{HttpRequest, HttpResponse, web};
use utoipa_swagger_ui::Config;

use super::problem::{Code, Problem};

/// The page's address.
pub const ROOT: &str = "/docs";
/// The page's files; the page itself has an empty name.
pub const FILES: &str = "/docs/{file:.*}";
/// The files that the page loads; nothing else of the bundle is served.
const SERVED: [&str; 8] = [
    "",
    "index.html",
    "index.css",
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-initializer.js",
    "favicon-32x32.png",
];
/// Scripts and styles only from here, requests only to here, no frames, no forms elsewhere. The
/// bundle draws its icons from `data:` urls.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn configure(config: &mut web::ServiceConfig) {
    // No badge of an outside validator, no field for other documents: only this server's.
    let ui = Config::from("/openapi.json").use_base_layout().validator_url("none").try_it_out_enabled(true);
    config
        .app_data(web::Data::from(Arc::new(ui)))
        .route(ROOT, web::get().to(redirect_to_docs))
        .route(FILES, web::get().to(get_docs_file));
}

#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
async fn redirect_to_docs() -> HttpResponse {
    HttpResponse::PermanentRedirect().insert_header((LOCATION, "/docs/")).finish()
}

#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
async fn get_docs_file(request: HttpRequest, ui: web::Data<Config<'static>>) -> Result<HttpResponse, Problem> {
    let name = request.match_info().get("file").unwrap_or_default();
    if !SERVED.contains(&name) {
        return Err(Problem::plain(Code::NotFound));
    }
    let file =
        utoipa_swagger_ui::serve(name, ui.into_inner()).ok().flatten().ok_or_else(|| Problem::plain(Code::NotFound))?;
    Ok(HttpResponse::Ok()
        .content_type(file.content_type)
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .body(file.bytes.into_owned()))
}
