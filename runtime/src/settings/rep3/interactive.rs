//! Ops that send messages, at one party: each becomes a [`Task`].

use std::rc::Rc;
use std::sync::Arc;

use ombra_ir::Result;
use ombra_ir::curve::Cells;
use ombra_ir::op::Op;
use ombra_ir::settings::rep3::is_interactive;
use ombra_ir::{Diagnostic, bind};

use super::local_ops::wide_bits;
use super::value::Value;
use crate::exec::Task;
use crate::exec::side::{Ended, Site};
use crate::settings::rep3::Cx;
use crate::settings::rep3::compare::msb;
use crate::settings::rep3::convert::{bit_to_ring, select};
use crate::settings::rep3::curve::look_up;
use crate::settings::rep3::embed::{Rows, Table, embed};
use crate::settings::rep3::exp::exp_digits;
use crate::settings::rep3::input::input;
use crate::settings::rep3::join::and;
use crate::settings::rep3::local::linear::Ring;
use crate::settings::rep3::reshare::{Operand, reshare};
use crate::settings::rep3::reveal::reveal;
use crate::settings::rep3::share::{Component, Shared};
use crate::settings::rep3::tree::{arg_max, row_max};
use crate::settings::rep3::truncate::truncate;
use crate::settings::tables::CurveTables;
use crate::settings::weights::{Matrix, Weight};
use crate::settings::words::broadcast::expand;
use crate::settings::words::ops::{OpSizes, missing};

/// Whether an op has a kernel here: it sends messages, or may.
pub(super) fn has_kernel(op: &Op) -> bool {
    matches!(op, Op::Input { .. }) || is_interactive(op)
}

/// The task of an interactive op. `given` is what this party, as the client, gives to an input.
pub(super) fn start(
    site: Site<'_>,
    cx: &Cx,
    args: Vec<Arc<Value>>,
    given: Option<Vec<u64>>,
    tables: Rc<CurveTables>,
) -> Result<Task<Ended<Value>>> {
    let node = site.node();
    let dims = OpSizes::new(site)?;
    let (op, own, threads) = (node.op.clone(), cx.clone(), site.products.threads());
    let wide = |i: usize| wide_bits(site, args.get(i).ok_or_else(missing)?.bits()?, i);
    let wide = match op {
        Op::And if dims.shapes.first() != dims.shapes.get(1) => vec![wide(0)?, wide(1)?],
        Op::Select if dims.shapes.first() != Some(&dims.out) => vec![wide(0)?],
        _ => Vec::new(),
    };
    let kernel = async move {
        let OpSizes { n, ref out, ref shapes, bits, from: (from, from_scale), .. } = dims;
        let cx = &own;
        let arg = |i: usize| args.get(i).ok_or_else(missing);
        // What is taken as two terms.
        let taken = usize::from(matches!(op, Op::Select));
        let of_two = args.get(taken).and_then(|x| x.operand().ok()?.two_terms(cx.role()));
        let terms = || of_two.as_ref().map_or_else(|| arg(taken)?.shared(), Ok);
        let shared = match &op {
            Op::Input { .. } => input(cx, given, n, bits).await?,
            Op::Truncate { by, bits } => {
                let ring = truncate(cx, arg(0)?.operand()?, n, (from, *bits), *by).await?;
                return Ok(Ended::Value(Value::Ring(ring)));
            }
            Op::Reshare => reshare(cx, arg(0)?.operand()?, n, bits).await?,
            Op::BitToRing { bits } => bit_to_ring(cx, arg(0)?.bits()?, *bits).await?,
            Op::Select => {
                let b = match wide.first() {
                    Some(b) => b,
                    None => arg(0)?.bits()?,
                };
                let (x, shape) = (terms()?, dims.shape(1)?);
                let sum = match shape == out {
                    true => select(cx, b, x, bits).await?,
                    false => select(cx, b, &wide_words(x, shape, out)?, bits).await?,
                };
                return Ok(Ended::Value(Value::Ring(Ring::Two(sum))));
            }
            Op::ExpDigits { scale, window, tail } => exp_digits(cx, terms()?, n, *scale, (*window, *tail)).await?,
            Op::RowMax { width, drop, .. } => {
                let lens = dims.lens();
                let max = row_max(cx, terms()?, lens, bits, (*width, *drop)).await?;
                if of_two.is_some() {
                    return Ok(Ended::Value(Value::Ring(Ring::Two(max))));
                }
                reshare(cx, Operand::Two(&max), n, bits).await?
            }
            Op::ArgMax { width } => arg_max(cx, terms()?, n, dims.row_len(), bits, *width).await?,
            Op::Embed => {
                let ids = match &**arg(0)? {
                    Value::Ids(ids) => ids.as_deref(),
                    _ => return Err(Diagnostic::internal("E0811", "a lookup has no ids")),
                };
                let [id_shape, table_shape] = shapes.as_slice() else {
                    return Err(Diagnostic::internal("E0811", "a lookup has two operands"));
                };
                let sizes = Table::new(id_shape, table_shape, bits)?;
                let table = arg(1)?;
                let block = |start: usize, count: usize| match &**table {
                    Value::Matrix(matrix) => shared_block(matrix, start, count),
                    value => rows_of(value.shared()?, start, count, sizes.columns),
                };
                let (stored, at_once) = match &**table {
                    Value::Matrix(matrix) => (None, matrix.block_rows()),
                    value => (Some(value.shared()?), sizes.rows.max(1)),
                };
                embed(cx, ids, &Rows { stored, block: &block, at_once }, sizes, threads).await?
            }
            Op::Lookup { curve, window, cell, bits, scale } => {
                let cells = Cells { window: *window, from: from_scale, cell: *cell, scale: *scale };
                let sum = look_up(cx, &tables, terms()?, n, *curve, cells, *bits).await?;
                return Ok(Ended::Value(Value::Ring(Ring::Three(sum))));
            }
            Op::Msb { width, drop } => {
                return msb(cx, terms()?, n, *width, *drop).await.map(|x| Ended::Value(Value::Bits(x)));
            }
            Op::And => {
                let [x, y] = match wide.as_slice() {
                    [x, y] => [x, y],
                    _ => [arg(0)?.bits()?, arg(1)?.bits()?],
                };
                return and(cx, x, y).await.map(|x| Ended::Value(Value::Bits(x)));
            }
            Op::Reveal { .. } => return reveal(cx, arg(0)?.shared()?, n, bits).await.map(Ended::Opened),
            _ => return Err(Diagnostic::internal("E0815", format!("{} has no interactive kernel", op.name()))),
        };
        Ok(Ended::Value(Value::Ring(Ring::Shared(shared))))
    };
    Task::new(cx.port(), site.party.index() as u8, node.rot, site.traffic, kernel)
        .map_err(|error| error.at(bind::place(site.module, site.id)))
}

/// Shares broadcast to the shape of a result.
fn wide_words(x: &Shared, shape: &[usize], out: &[usize]) -> Result<Shared> {
    let wide = |component: &Component| match component.data() {
        None => Ok(Component::Zero),
        Some(words) => expand(words, shape, out).map(Component::from),
    };
    Ok(Shared { a: wide(&x.a)?, b: wide(&x.b)? })
}

fn shared_block(matrix: &Matrix, start: usize, count: usize) -> Result<Shared> {
    match matrix.block(start, count)? {
        Weight::Private(terms) => Ok(Shared::weight(matrix.party(), terms)),
        Weight::Public(_) => Err(Diagnostic::internal("E0811", "a lookup in a table that is not secret")),
    }
}

/// Rows of a table that is stored whole.
fn rows_of(table: &Shared, start: usize, count: usize, columns: usize) -> Result<Shared> {
    let (from, to) = (start * columns, (start + count) * columns);
    Ok(table.map(|words| words.get(from..to).unwrap_or(&[]).to_vec()))
}
