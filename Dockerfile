# syntax=docker/dockerfile:1
# Build:  docker build -t visionscope .
# Run:    see compose.yaml

FROM rust:1-bookworm AS build
WORKDIR /build

# The dependencies first, in a layer of their own: it is rebuilt only when they change.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir -p src benches/hot_path examples/rust \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs benches/hot_path/main.rs benches/one_transaction.rs examples/rust/main.rs \
    && cargo build --release --locked \
    && rm -r src

# What the program is made of. Migrations, plans and the publisher's script are compiled in.
COPY migrations migrations
COPY config config
COPY src src
# The placeholders above may be newer than these files.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

FROM debian:bookworm-slim
# Roots of trust for TLS to the databases, key sets and collectors.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/visionscope --create-home visionscope \
    && mkdir /var/lib/visionscope/data \
    && chown visionscope: /var/lib/visionscope/data
COPY --from=build /build/target/release/visionscope /usr/local/bin/visionscope

USER 10001:10001
WORKDIR /var/lib/visionscope
# Others can reach a container, so it starts only with auth.keys or auth.jwks_url.
ENV VISIONSCOPE__SERVER__BIND=0.0.0.0:8080 \
    VISIONSCOPE__SERVER__OPS_BIND=0.0.0.0:9090 \
    VISIONSCOPE__TELEMETRY__LOG_FORMAT=json
# The API, and probes and metrics.
EXPOSE 8080 9090
VOLUME /var/lib/visionscope/data
# Asks /livez on the second port: a flood or a database that is down is no reason to restart the server.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 CMD ["visionscope", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["visionscope"]
CMD ["serve"]
