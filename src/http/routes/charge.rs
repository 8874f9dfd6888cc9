//! What a request charges: credits, or a quantity.

use crate::domain::commands::Charge;
use crate::domain::credits::{PositiveCredits, Quantity};
use crate::http::problem::{Code, Problem};

/// Exactly one of both is required.
pub(super) fn charge(credits: Option<PositiveCredits>, quantity: Option<Quantity>) -> Result<Charge, Problem> {
    let detail = "exactly one of credits and quantity is required";
    optional_charge(credits, quantity)?.ok_or_else(|| Problem::field(Code::InvalidField, "/credits", detail))
}

/// At most one of both.
pub(super) fn optional_charge(
    credits: Option<PositiveCredits>,
    quantity: Option<Quantity>,
) -> Result<Option<Charge>, Problem> {
    match (credits, quantity) {
        (Some(credits), None) => Ok(Some(Charge::Credits(credits))),
        (None, Some(quantity)) => Ok(Some(Charge::Quantity(quantity))),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            Err(Problem::field(Code::InvalidField, "/credits", "only one of credits and quantity can be sent"))
        }
    }
}
