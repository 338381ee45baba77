//! Settings at one party: what a party holds of a value, and what it does for every op.
//!
//! The executor ([`crate::exec`]) knows orders, ticks, frames, states and lifetimes of values; everything that depends on
//! how secrets are held is a [`Side`](crate::exec::side::Side). The facts of a setting that all parties and the compiler share are in
//! `ombra_ir::settings`.

pub mod cx;
pub mod dealer;
mod one_hot;
mod parabola;
pub mod plain;
pub mod rep3;
mod rows;
pub mod tables;
#[cfg(test)]
pub(crate) mod testing;
pub mod two_party;
pub mod weights;
pub mod words;

use std::sync::Arc;

use ombra_ir::module::{Module, Node, Party};
use ombra_ir::op::Op;
use ombra_ir::schedule::of_server;
use ombra_ir::settings::Setting;
use ombra_ir::{Diagnostic, Result};

use crate::backend::products::Products;
use crate::exec::net::Net;
use crate::exec::run::check_kernels;
use crate::exec::{Run, Steps};
use cx::Keys;
use dealer::Dealer;
use rep3::Rep3;
use two_party::TwoParty;
use weights::Weights;

/// Fresh keys of `party` for a session in which all run `module`, of the plan with the digest `plan`.
///
/// # Errors
/// No randomness, and whatever ended the session.
pub fn agree_keys(module: &Module, plan: &str, party: Party, net: &mut dyn Net) -> Result<Keys> {
    match module.setting {
        Setting::TwoParty => two_party::keys::agree(plan, module, party, net),
        setting => weights::agree_keys(setting, party, net),
    }
}

/// The side of `party` of a session with fresh keys, in the setting of the verified `module`, where
/// `products` says how products are made.
///
/// # Errors
/// Those of [`check`].
pub fn begin(
    module: Arc<Module>,
    party: Party,
    keys: Keys,
    weights: Arc<Weights>,
    products: Products,
) -> Result<Box<dyn Steps>> {
    Ok(match module.setting {
        Setting::ThreeParty => Box::new(Run::new(module, party, Rep3::new(keys, weights), products)?),
        Setting::Dealer => Box::new(Run::new(module, party, Dealer::new(party, keys, weights), products)?),
        Setting::TwoParty => Box::new(Run::new(module, party, TwoParty::new(party, keys, weights)?, products)?),
        Setting::Plain => return Err(no_parties()),
    })
}

/// Checks that parties can run a module: its setting has a kernel for every op.
///
/// # Errors
/// `E0815` for an op without a kernel, `E0421` for a setting without messages, and for a table that is too large for it.
pub fn check(module: &Module) -> Result<()> {
    match module.setting {
        Setting::ThreeParty => check_kernels::<Rep3>(module),
        Setting::Dealer => {
            check_tables(module)?;
            check_kernels::<Dealer>(module)
        }
        Setting::TwoParty => {
            check_tables(module)?;
            ombra_ir::settings::two_party::check(module)?;
            check_kernels::<TwoParty>(module)
        }
        Setting::Plain => Err(no_parties()),
    }
}

/// Refuses lookups in what is no private weight.
fn check_tables(module: &Module) -> Result<()> {
    let weights = |node: &Node| node.args.get(1).is_some_and(|&table| of_server(module, table));
    if module.ops.iter().any(|node| matches!(node.op, Op::Embed) && !weights(node)) {
        let setting = module.setting.name();
        let what = format!("a lookup in a table that is no private weight has no kernel in the setting {setting}");
        return Err(Diagnostic::internal("E0815", what));
    }
    Ok(())
}

fn no_parties() -> Diagnostic {
    Diagnostic::input("E0421", "a plan for one party in the clear does not run between parties")
        .note("help      compile for 3pc, 2pc-dealer or 2pc")
}
