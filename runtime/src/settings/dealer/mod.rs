//! `2pc-dealer`: client and server hold additive shares, and a dealer gives them correlations.
//!
//! Roles: 0 the client, 1 the server, 2 the dealer. Key `k_0` is of client and dealer, `k_1` of client and server, `k_2` of
//! server and dealer. The dealer sends to the server alone: what the client needs of a correlation follows from `k_0`. The
//! dealer receives nothing in a step, so its messages wait for nobody's.
//!
//! Every message is a value plus a stream of a key that its receiver lacks, under a label used once, or an element that is
//! dealt: so it is uniform given all that the receiver holds, whatever the values are, and simulators of ops compose. What
//! is opened to the client is its share and the output that they determine.

pub mod bits;
pub mod compare;
pub mod curve;
pub mod divide;
pub mod embed;
pub mod exp;
pub(super) mod local;
mod lookup;
mod planes;
pub mod products;
pub mod share;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod value;

use std::rc::Rc;
use std::sync::Arc;

use ombra_ir::curve::Cells;
use ombra_ir::module::{Id, Party};
use ombra_ir::op::{Class, Op};
use ombra_ir::schedule::of_server;
use ombra_ir::settings::dealer::is_interactive;
use ombra_ir::ty::{Sharing, Ty};
use ombra_ir::{Result, bind};

pub use super::cx::{Cx, Keys, Purpose};
use super::rep3::embed::Table;
use super::tables::CurveTables;
use super::weights::{Found, Part, Weight, Weights};
use super::words::broadcast::{expand, volume, zip};
use super::words::movement::slice;
use super::words::ops::{OpSizes, is_linear, missing};
use super::words::product::Plan;
use crate::backend::bits::words;
use crate::backend::products::Products;
use crate::exec::Task;
use crate::exec::side::{Begun, Ended, Given, Side, Site};
use embed::{Sums, embed};
use local::role;
use products::{Bilinear, Factor, Operand, product, times_weight};
use share::{BitShare, Share};
use value::{Value, part_of, unexpected};

/// One party of the setting in a session: its keys, and what it holds of the weights.
pub struct Dealer {
    keys: Rc<Keys>,
    weights: Arc<Weights>,
    tables: Rc<CurveTables>,
    role: u8,
}

impl Dealer {
    /// The side of a party with fresh keys.
    pub fn new(party: Party, keys: Keys, weights: Arc<Weights>) -> Self {
        Dealer { keys: Rc::new(keys), weights, tables: Rc::default(), role: party.index() as u8 }
    }
}

impl Side for Dealer {
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
            (Op::Random { .. }, _) => Value::Bits(random(&cx, n)?),
            (op, _) => {
                let public = |i: usize| args.get(i).is_some_and(|x| matches!(&**x, Value::Public(_)));
                if !is_interactive(op, [public(0), public(1)]) {
                    return local::run(site, &args).map(Begun::Value);
                }
                return start(site, cx, args, Rc::clone(&self.tables)).map(Begun::Waits);
            }
        };
        Ok(Begun::Value(Arc::new(value)))
    }

    fn weight(&self, id: Id, user: &Op, slot: usize) -> Result<Arc<Value>> {
        let is_matrix = slot == 1 && matches!(user, Op::MatMul { .. } | Op::Embed);
        let weight = match self.weights.get(id, is_matrix)? {
            Found::Matrix(matrix) if matrix.is_secret() => return Ok(Arc::new(Value::Matrix(matrix))),
            // What everybody knows is multiplied whole.
            Found::Matrix(matrix) => Arc::new(matrix.block(0, matrix.rows)?),
            Found::Whole(weight) => weight,
        };
        Ok(Arc::new(match Arc::unwrap_or_clone(weight) {
            Weight::Public(words) => Value::Public(words),
            Weight::Private(terms) => Value::Weight(terms),
        }))
    }

    fn settled(&self, value: &Arc<Value>) -> Result<Arc<Value>> {
        Ok(Arc::clone(value))
    }

    fn empty(&self, ty: &Ty, _: &[usize]) -> Result<Value> {
        match (ty.sharing, self.role) {
            (Sharing::Masked, role) => Value::Public(Vec::new()).masked(role, 0).map(|x| Value::Masked(x.into_owned())),
            (_, 2) => Ok(Value::Share(Share::nothing())),
            _ => Ok(Value::Share(Share::of(Vec::new()))),
        }
    }

    fn cut(&self, value: &Value, shape: &[usize], axis: usize, length: usize) -> Result<Value> {
        let of = |words: &[u64]| slice(words, shape, axis, 0, length);
        if let Value::Masked(masked) = value {
            return masked.map(of).map(Value::Masked);
        }
        Ok(Value::Share(
            value.share(self.role)?.map(|words| of(&words).map(Share::of)).transpose()?.unwrap_or_else(Share::nothing),
        ))
    }
}

/// The client's input: `x^1 = F(k_1)` at the server, `x^0 = x − F(k_1)` at the client. Nothing is sent, and neither share
/// says anything of `x` to who holds it and nothing else.
fn input(cx: &Cx, given: Option<Vec<u64>>, n: usize) -> Result<Share> {
    match (cx.role(), given) {
        (0, Some(x)) => Ok(Share::of(products::minus(x, &cx.draw(1, Purpose::Input, 0, n)?))),
        (1, None) => cx.draw(1, Purpose::Input, 0, n).map(Share::of),
        (2, None) => Ok(Share::nothing()),
        _ => Err(unexpected("an input of the client alone")),
    }
}

/// Fresh bits `F(k_0) ⊕ F(k_1) ⊕ F(k_2)`, of which every party lacks one: the first two at the client, the last at the
/// server.
fn random(cx: &Cx, n: usize) -> Result<BitShare> {
    let draw = |key: u8| cx.draw(key, Purpose::Random, 0, words(n));
    Ok(match cx.role() {
        0 => BitShare::of(n, draw(0)?.iter().zip(draw(1)?).map(|(x, y)| x ^ y).collect()),
        1 => BitShare::of(n, draw(2)?),
        _ => BitShare::nothing(n),
    })
}

/// Opens a value to the client, which gets the server's share: it and the output determine that share, which the simulator
/// therefore knows.
async fn reveal(cx: &Cx, x: &Share, n: usize, bits: u8) -> Result<Option<Vec<u64>>> {
    if cx.role() == 1 {
        cx.send(0, x.own()?, bits);
    }
    cx.round().await;
    if cx.role() != 0 {
        return Ok(None);
    }
    Ok(Some(products::plus(cx.take(1, n, bits)?, x.own()?)))
}

/// The task of an op that sends messages.
fn start(site: Site<'_>, cx: Cx, args: Vec<Arc<Value>>, tables: Rc<CurveTables>) -> Result<Task<Ended<Value>>> {
    let (node, dims) = (site.node(), OpSizes::new(site)?);
    let (products, role) = (site.products.clone(), role(site));
    let wide = local::wide_operands(site, &args)?;
    let known = [0, 1].map(|i| node.args.get(i).is_some_and(|&arg| of_server(site.module, arg)));
    let (op, own) = (node.op.clone(), cx.clone());
    let kernel = async move {
        let OpSizes { n, ref out, ref shapes, bits, from: (from, from_scale), .. } = dims;
        let cx = &own;
        let arg = |i: usize| args.get(i).ok_or_else(missing);
        let share = |i: usize| -> Result<Share> {
            let n = shapes.get(i).map_or(Ok(0), |shape| volume(shape))?;
            arg(i)?.to_share(role, n)
        };
        // The first operand of ops that take it masked too.
        let is_masked = matches!(args.first().map(|x| &**x), Some(Value::Masked(_)));
        let takes_masked = matches!(op, Op::Msb { .. } | Op::ExpDigits { .. } | Op::Lookup { .. });
        let shared = if takes_masked && !is_masked { share(0)? } else { Share::nothing() };
        let first = match args.first().map(|x| &**x) {
            Some(Value::Masked(masked)) => Operand::Ready(masked),
            _ => Operand::Share(&shared),
        };
        let result = match &op {
            Op::Mul | Op::MatMul { .. } => {
                let operation = Operation::new(&op, shapes, out, &products)?;
                operation.run(cx, &args, known, &share, n, bits).await?
            }
            Op::Mask => {
                return products::mask(cx, &share(0)?, n, bits).await.map(|x| Ended::Value(Value::Masked(x)));
            }
            Op::Hold => return products::hold(cx, &share(0)?, n, bits).await.map(|x| Ended::Value(Value::Held(x))),
            Op::Truncate { by, bits } => divide::divide(cx, &share(0)?, n, (from, *bits), *by).await?,
            Op::BitToRing { bits } => bits::bit_to_ring(cx, arg(0)?.bits()?, *bits).await?,
            Op::ExpDigits { scale, window, tail } => exp::exp_digits(cx, first, n, *scale, (*window, *tail)).await?,
            Op::Lookup { curve, window, cell, bits, scale } => {
                let cells = Cells { window: *window, from: from_scale, cell: *cell, scale: *scale };
                curve::look_up(cx, &tables, first, n, *curve, cells, *bits).await?
            }
            Op::Select => {
                let [b] = wide.as_slice() else { return Err(missing()) };
                let wide_x = |words: &[u64]| expand(words, dims.shape(1)?, out);
                let x = match &**arg(1)? {
                    Value::Masked(masked) => masked.map(wide_x)?,
                    x => {
                        let count = shapes.get(1).map_or(Ok(0), |shape| volume(shape))?;
                        products::mask(cx, &x.to_share(role, count)?, count, bits).await?.map(wide_x)?
                    }
                };
                let (_, selected) = bits::select(cx, b, &[x], bits).await?;
                selected.into_iter().next().ok_or_else(missing)?
            }
            Op::RowMax { width, drop, .. } => tree::row_max(cx, &share(0)?, dims.lens(), bits, (*width, *drop)).await?,
            Op::ArgMax { width } => tree::arg_max(cx, &share(0)?, n, dims.row_len(), bits, *width).await?,
            Op::Embed => {
                let Value::Ids(ids) = &**arg(0)? else { return Err(unexpected("ids of the client")) };
                let [id_shape, table_shape] = shapes.as_slice() else { return Err(missing()) };
                let sizes = Table::new(id_shape, table_shape, bits)?;
                let table = arg(1)?;
                let products = &products;
                let sum = |part: Part| {
                    move |vectors: &[u64]| {
                        let shape = [vectors.len() / sizes.rows.max(1), sizes.rows];
                        times(part, (vectors, &shape), (table, table_shape), false, products)
                    }
                };
                let (first, second, whole) = (sum(Part::First), sum(Part::Second), sum(Part::Whole));
                embed(cx, ids.as_deref(), &Sums { first: &first, second: &second, whole: &whole }, sizes).await?
            }
            Op::Msb { width, drop } => {
                let sign = compare::msb(cx, first, n, *width, *drop).await;
                return sign.map(|x| Ended::Value(Value::Bits(x)));
            }
            Op::And => {
                let [x, y] = wide.as_slice() else { return Err(missing()) };
                return bits::and(cx, x, y).await.map(|x| Ended::Value(Value::Bits(x)));
            }
            Op::Reveal { .. } => return reveal(cx, &share(0)?, n, bits).await.map(Ended::Opened),
            _ => return Err(unexpected("an op that sends messages")),
        };
        Ok(Ended::Value(Value::Share(result)))
    };
    Task::new(cx.port(), site.party.index() as u8, 0, site.traffic, kernel)
        .map_err(|error| error.at(bind::place(site.module, site.id)))
}

/// `x · W` of a part of a weight, which may be made block by block.
fn times(
    part: Part,
    (x, shape): (&[u64], &[usize]),
    (weight, weight_shape): (&Value, &[usize]),
    trans_b: bool,
    products: &Products,
) -> Result<Vec<u64>> {
    match weight {
        Value::Weight(terms) => {
            let pair = [(Some(x.into()), Some(part_of(part, terms)?))];
            Ok(Plan::new(shape, weight_shape, trans_b)?.sum_of_products(&pair, products.threads())?.unwrap_or_default())
        }
        Value::Matrix(matrix) => matrix.product(part, x, trans_b, products),
        _ => Err(unexpected("a private weight")),
    }
}

/// A product of two secrets with its sizes.
struct Operation<'a> {
    /// Whether the right operand of a matrix product is given with its axes exchanged; none for element-wise products.
    trans_b: Option<bool>,
    shapes: [&'a [usize]; 2],
    out: &'a [usize],
    products: &'a Products,
}

impl<'a> Operation<'a> {
    fn new(op: &Op, shapes: &'a [Vec<usize>], out: &'a [usize], products: &'a Products) -> Result<Self> {
        let [x, y] = shapes else { return Err(missing()) };
        let trans_b = if let Op::MatMul { trans_b } = op { Some(*trans_b) } else { None };
        Ok(Operation { trans_b, shapes: [x, y], out, products })
    }

    fn apply(&self, x: &[u64], y: &[u64]) -> Result<Vec<u64>> {
        let [xs, ys] = self.shapes;
        match self.trans_b {
            None => zip((x, xs), (y, ys), self.out, u64::wrapping_mul),
            Some(trans_b) => {
                let pair = [(Some(x.into()), Some(y.into()))];
                Ok(Plan::new(xs, ys, trans_b)?.sum_of_products(&pair, self.products.threads())?.unwrap_or_default())
            }
        }
    }

    /// The product: with one mask where the server knows an operand, else with two.
    async fn run(
        &self,
        cx: &Cx,
        args: &[Arc<Value>],
        known: [bool; 2],
        share: &dyn Fn(usize) -> Result<Share>,
        n: usize,
        bits: u8,
    ) -> Result<Share> {
        let sizes = [volume(self.shapes[0])?, volume(self.shapes[1])?];
        let weight = [1, 0].into_iter().find(|&i| known[i]);
        let ready = |i: usize| match args.get(i).map(|x| &**x) {
            Some(Value::Masked(masked)) => Some(masked),
            Some(Value::Held(held)) if weight.is_some() => Some(held),
            _ => None,
        };
        let is_taken = |i: usize| ready(i).is_none() && weight != Some(i);
        let shares = [0, 1].map(|i| if is_taken(i) { share(i) } else { Ok(Share::nothing()) });
        let [x, y] = shares;
        let shares = [x?, y?];
        let operand = |i: usize| ready(i).map_or(Operand::Share(&shares[i]), Operand::Ready);
        let Some(weight) = weight else {
            let apply = |x: &[u64], y: &[u64]| self.apply(x, y);
            let f = Bilinear { apply: &apply, operands: sizes, result: n };
            return product(cx, &f, operand(0), operand(1), bits).await;
        };
        let secret = 1 - weight;
        let value = &**args.get(weight).ok_or_else(missing)?;
        let with = |part: Part| {
            move |x: &[u64]| match (self.trans_b, weight) {
                (Some(trans_b), 1) => times(part, (x, self.shapes[0]), (value, self.shapes[1]), trans_b, self.products),
                _ => {
                    let Value::Weight(terms) = value else { return Err(unexpected("a private weight")) };
                    let term = part_of(part, terms)?;
                    if weight == 1 { self.apply(x, &term) } else { self.apply(&term, x) }
                }
            }
        };
        let (first, second, whole) = (with(Part::First), with(Part::Second), with(Part::Whole));
        let factor = Factor { first: &first, second: &second, whole: &whole };
        times_weight(cx, operand(secret), &factor, (sizes[secret], n), bits).await
    }
}
