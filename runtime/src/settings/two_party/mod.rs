//! `2pc`: client and server alone hold additive shares, and make their correlations by oblivious transfers; matrices are
//! multiplied by ciphertexts of the client's.
//!
//! Roles: 0 the client, 1 the server. Key `k_1` is known to both, and masks nothing of one from the other: it says what of a
//! client's input is whose share. What each hides from the other is under pads of transfers ([`crate::ot`]), or under random
//! numbers of its own. A private weight is the server's share, and the client's is 0.
//!
//! Every message is what a transfer's chooser sends, which is uniform, or a value under a pad that its receiver has not, or a
//! value under a random share of the other party's, or a ciphertext that nobody tells from a uniform one: so it is uniform given all that the receiver holds, whatever the values
//! are, and simulators of ops compose. What is opened to the client is its share and the output that they determine.

mod bits;
mod compare;
mod divide;
pub mod keys;
mod lookup;
pub mod matrices;
mod pair;
mod products;
#[cfg(test)]
mod tests;
mod tree;

use std::rc::Rc;
use std::sync::Arc;

use ombra_ir::curve::Cells;
use ombra_ir::module::{Id, Party};
use ombra_ir::op::{Class, Op};
use ombra_ir::schedule::{of_server, squares};
use ombra_ir::settings::two_party::{Right, is_interactive};
use ombra_ir::ty::Ty;
use ombra_ir::{Diagnostic, Result, bind};

pub use super::cx::{Cx, Keys, Purpose};
use super::dealer::local;
use super::dealer::share::{BitShare, Share};
use super::dealer::value::{Value, unexpected};
use super::rep3::embed::Table;
use super::weights::{Found, Weight, Weights};
use super::words::broadcast::{expand, volume};
use super::words::movement::slice;
use super::words::ops::{OpSizes, is_linear, missing};
use super::words::product::Plan;
use crate::backend::bits::words;
use crate::exec::Task;
use crate::exec::side::{Begun, Ended, Given, Side, Site};
use crate::ot::Transfers;
use crate::wiped::Zeroizing;
use matrices::{TileKeys, multiply_matrices};
use pair::Pair;
use products::multiply;

/// What two parties have beside keys that they share: transfers, and keys of ciphertexts.
pub struct Correlations {
    /// Oblivious transfers in both directions.
    pub transfers: Transfers,
    /// Keys for products of matrices.
    pub tiles: TileKeys,
}

/// One party of the setting in a session: its keys and transfers, and the weights that it knows.
pub struct TwoParty {
    keys: Rc<Keys>,
    transfers: Rc<Transfers>,
    tiles: Rc<TileKeys>,
    weights: Arc<Weights>,
    role: u8,
}

impl TwoParty {
    /// The side of a party with fresh keys and transfers.
    ///
    /// # Errors
    /// `E0801` for keys of another setting.
    pub fn new(party: Party, mut keys: Keys, weights: Arc<Weights>) -> Result<Self> {
        let none = || Diagnostic::internal("E0801", "the keys of two parties come with what they share alone");
        let Correlations { transfers, tiles } = keys.take_pair().ok_or_else(none)?;
        let (transfers, tiles) = (Rc::new(transfers), Rc::new(tiles));
        Ok(TwoParty { keys: Rc::new(keys), transfers, tiles, weights, role: party.index() as u8 })
    }
}

impl Side for TwoParty {
    type Value = Value;

    fn has_kernel(op: &Op) -> bool {
        match op.class() {
            Class::Source => true,
            Class::Composite => false,
            Class::Core => is_linear(op) || matches!(op, Op::Reshare) || is_interactive(op, [false; 2]),
        }
    }

    fn begin(&self, site: Site<'_>, args: Vec<Arc<Value>>, given: Given) -> Result<Begun<Value>> {
        let node = site.node();
        let n = site.bound.len(site.id);
        let cx = Cx::new(Rc::clone(&self.keys), site.party.index() as u8, 0, site.id.0, site.epoch);
        let value = match (&node.op, given) {
            (Op::Public { value }, _) => Value::Plain(*value),
            (Op::ClientInts { .. }, Given::Ints(ids)) => Value::Ids(ids),
            (Op::Input { .. }, Given::Words(given)) => Value::Share(input(&cx, given, n)?),
            // Each party draws a share of its own.
            (Op::Random { .. }, _) => Value::Bits(BitShare::of(n, cx.draw_private(Purpose::Random, 0, words(n)))),
            (op, _) => {
                let public = |i: usize| args.get(i).is_some_and(|x| matches!(&**x, Value::Public(_)));
                if !is_interactive(op, [public(0), public(1)]) {
                    return local::run(site, &args).map(Begun::Value);
                }
                let pair = Pair::new(cx, Rc::clone(&self.transfers));
                return start(site, pair, Rc::clone(&self.tiles), args).map(Begun::Waits);
            }
        };
        Ok(Begun::Value(Arc::new(value)))
    }

    fn weight(&self, id: Id, _: &Op, _: usize) -> Result<Arc<Value>> {
        let Found::Whole(weight) = self.weights.get(id, false)? else { return Err(unexpected("a weight as it is")) };
        Ok(Arc::new(match Arc::unwrap_or_clone(weight) {
            Weight::Public(words) => Value::Public(words),
            Weight::Private(terms) => Value::Weight(terms),
        }))
    }

    fn settled(&self, value: &Arc<Value>) -> Result<Arc<Value>> {
        Ok(Arc::clone(value))
    }

    fn empty(&self, _: &Ty, _: &[usize]) -> Result<Value> {
        Ok(Value::Share(Share::of(Vec::new())))
    }

    fn cut(&self, value: &Value, shape: &[usize], axis: usize, length: usize) -> Result<Value> {
        let share = value.share(self.role)?;
        let cut = share.map(|words| slice(&words, shape, axis, 0, length)).transpose()?;
        Ok(Value::Share(cut.map_or_else(Share::nothing, Share::of)))
    }
}

/// The client's input: `x^1 = F(k_1)` at the server, `x^0 = x − F(k_1)` at the client. Nothing is sent, and the server's share
/// says nothing of `x`.
fn input(cx: &Cx, given: Option<Vec<u64>>, n: usize) -> Result<Share> {
    let mask = Zeroizing::new(cx.draw(1, Purpose::Input, 0, n)?);
    match (cx.role(), given) {
        (0, Some(x)) => Ok(Share::of(x.iter().zip(mask.iter()).map(|(x, mask)| x.wrapping_sub(*mask)).collect())),
        (1, None) => Ok(Share::of(mask.to_vec())),
        _ => Err(unexpected("an input of the client alone")),
    }
}

/// Opens a value to the client, which gets the server's share: it and the output determine that share, which the simulator
/// therefore knows.
async fn reveal(pair: &Pair, x: &Share, n: usize, bits: u8) -> Result<Option<Vec<u64>>> {
    let cx = pair.cx();
    if !pair.is_client() {
        cx.send(0, x.own()?, bits);
    }
    cx.round().await;
    if !pair.is_client() {
        return Ok(None);
    }
    let other = cx.take(1, n, bits)?;
    Ok(Some(x.own()?.iter().zip(&other).map(|(x, y)| x.wrapping_add(*y)).collect()))
}

/// The task of an op that sends messages.
fn start(site: Site<'_>, pair: Pair, tiles: Rc<TileKeys>, args: Vec<Arc<Value>>) -> Result<Task<Ended<Value>>> {
    let (node, dims) = (site.node(), OpSizes::new(site)?);
    let (threads, role) = (site.products.threads(), site.party.index() as u8);
    let wide = local::wide_operands(site, &args)?;
    let known = [0, 1].map(|i| node.args.get(i).is_some_and(|&arg| of_server(site.module, arg)));
    let (op, port, is_square) = (node.op.clone(), pair.cx().port(), squares(&node.op, &node.args));
    let kernel = async move {
        let OpSizes { n, ref out, ref shapes, bits, from: (from, from_scale), .. } = dims;
        let pair = &pair;
        let arg = |i: usize| args.get(i).ok_or_else(missing);
        let share = |i: usize| -> Result<Share> {
            let n = shapes.get(i).map_or(Ok(0), |shape| volume(shape))?;
            arg(i)?.to_share(role, n)
        };
        // An operand's share in the shape of the result.
        let spread = |i: usize| -> Result<Zeroizing<Vec<u64>>> {
            expand(share(i)?.own()?, dims.shape(i)?, out).map(Zeroizing::new)
        };
        let result = match &op {
            Op::Mul => {
                let (x, y) = if known[0] && !known[1] { (spread(1)?, spread(0)?) } else { (spread(0)?, spread(1)?) };
                let right = match known {
                    [false, false] if is_square => Right::Same,
                    [false, false] => Right::Shared,
                    _ => Right::OfServer,
                };
                multiply(pair, &x, &y, right, bits).await?
            }
            Op::MatMul { trans_b } => {
                let [xs, ys] = shapes.as_slice() else { return Err(missing()) };
                let (x, y) = (share(0)?, share(1)?);
                let (x, y) = (x.own()?, y.own()?);
                let terms = [(Some(x.into()), Some(y.into()))];
                let plan = Plan::new(xs, ys, *trans_b)?;
                let own = plan.sum_of_products(&terms, threads)?.unwrap_or_default();
                let right = match known {
                    [false, true] => Right::OfServer,
                    _ if is_square => Right::Same,
                    _ => Right::Shared,
                };
                multiply_matrices(pair, &tiles, &plan, (x, y), Zeroizing::new(own), right, bits).await?
            }
            Op::Truncate { by, bits } => divide::divide(pair, &share(0)?, n, (from, *bits), *by).await?,
            Op::BitToRing { bits } => bits::bit_to_ring(pair, arg(0)?.bits()?, *bits).await?,
            Op::ExpDigits { scale, window, tail } => {
                lookup::exp_digits(pair, &share(0)?, n, *scale, (*window, *tail)).await?
            }
            Op::Lookup { curve, window, cell, bits, scale } => {
                let cells = Cells { window: *window, from: from_scale, cell: *cell, scale: *scale };
                lookup::curve(pair, &share(0)?, n, (*curve, cells), *bits).await?
            }
            Op::Select => {
                let [b] = wide.as_slice() else { return Err(missing()) };
                bits::select(pair, b, &spread(1)?, bits).await?
            }
            Op::RowMax { width, drop, .. } => {
                tree::row_max(pair, &share(0)?, dims.lens(), bits, (*width, *drop)).await?
            }
            Op::ArgMax { width } => tree::arg_max(pair, &share(0)?, (n, dims.row_len()), bits, *width).await?,
            Op::Embed => {
                let Value::Ids(ids) = &**arg(0)? else { return Err(unexpected("ids of the client")) };
                let [id_shape, table_shape] = shapes.as_slice() else { return Err(missing()) };
                let sizes = Table::new(id_shape, table_shape, bits)?;
                let table = (role == 1).then(|| share(1)).transpose()?;
                let table = table.as_ref().map(Share::own).transpose()?;
                lookup::embed(pair, &tiles, ids.as_deref(), table, sizes).await?
            }
            Op::Msb { width, drop } => {
                let sign = compare::msb(pair, share(0)?.own()?, n, (*width, *drop)).await;
                return sign.map(|x| Ended::Value(Value::Bits(x)));
            }
            Op::And => {
                let [x, y] = wide.as_slice() else { return Err(missing()) };
                return bits::and(pair, x, y).await.map(|x| Ended::Value(Value::Bits(x)));
            }
            Op::Reveal { .. } => return reveal(pair, &share(0)?, n, bits).await.map(Ended::Opened),
            _ => return Err(unexpected("an op that sends messages")),
        };
        Ok(Ended::Value(Value::Share(result)))
    };
    Task::new(port, role, 0, site.traffic, kernel).map_err(|error| error.at(bind::place(site.module, site.id)))
}

/// Operands that are not as large as an op takes them.
fn mismatch(what: &str) -> Diagnostic {
    Diagnostic::internal("E0804", what)
}
