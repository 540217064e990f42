//! `vat upgrade`: all rows of a sleeping vat in the newest form, in one turn.

use console::Failure;
use schemas::{ErrorCode, Exit};
use serde_json::json;

use super::{
    Context, block_on,
    way::{Intent, Way, put_back, way},
};
use crate::home::Name;

/// `vat upgrade NAME [--dry-run]`
pub(super) fn upgrade(context: &Context, name: &str, dry_run: bool) -> Result<Exit, Failure> {
    let name: Name = name.parse()?;
    let (places, id) = context.home.vat(&name)?;
    let intent = if dry_run { Intent::Look } else { Intent::Change };
    let rows = block_on(async {
        match way(context, &name, &places, id, intent).await? {
            Way::Awake(..) => Err(awake(&name)),
            Way::Asleep(vat) => {
                let rows = if dry_run { vat.try_upgrade()? } else { vat.upgrade()? };
                put_back(vat)?;
                Ok(rows)
            }
        }
    })?;
    let human = match (rows, dry_run) {
        (0, _) => format!("everything that {name} has stored is in the newest form"),
        (rows, true) => format!("{name} has {rows} rows of older versions, and all of them can be upgraded"),
        (rows, false) => format!("{name}: {rows} rows of older versions are now in the newest form"),
    };
    context.output.result(&human, &json!({"name": name.as_str(), "rows": rows, "dry_run": dry_run}))?;
    Ok(Exit::Ok)
}

fn awake(name: &Name) -> Failure {
    Failure::new(ErrorCode::VatRunning, format!("{name} is awake; it upgrades what it reads by itself"))
        .next(format!("Put it to sleep, and try again; or leave {name} as it is."))
}
