//! The parser.

use super::attr::{Attrs, dtype};
use super::cursor::Cursor;
use super::print::kind_name;
use super::public::tensor_op;
use crate::diag::{Diagnostic, Result};
use crate::dim::{Dim, Dims};
use crate::module::{
    Count, Id, InputSlot, Module, Node, Origin, OutputKind, OutputSlot, Party, Setting, Stage, StateSlot,
};
use crate::norms::{self, Norms};
use crate::op::Op;
use crate::plain;
use crate::ty::{BoundFrom, Elem, Sharing, Ty};

/// Longest text that is read, in bytes.
const MAX_TEXT: usize = 1 << 28;

/// Reads a module. It is not verified.
///
/// Errors: `E0370` and `E0371`, with line and column.
pub fn parse(text: &str) -> Result<Module> {
    parse_with_lines(text).map(|(module, _)| module)
}

/// Reads a module, and the line (from 1) that each op starts on.
///
/// Errors: as [`parse`].
pub fn parse_with_lines(text: &str) -> Result<(Module, Vec<usize>)> {
    if text.len() > MAX_TEXT {
        return Err(Diagnostic::input("E0370", format!("a text of {} bytes", text.len()))
            .note(format!("expected at most {MAX_TEXT}")));
    }
    let c = &mut Cursor::new(text);
    let mut module = header(c)?;
    while c.eat_word("size") {
        parse_size(c, &mut module.dims)?;
    }
    if c.eat_word("public") {
        module.public = program(c, &module.dims)?;
    }
    while c.eat_word("count") {
        let count = count(c, &module.dims)?;
        module.counts.push(count);
    }
    while c.eat_word("input") {
        let input = input(c, &module.dims)?;
        module.inputs.push(input);
    }
    while c.eat_word("state") {
        let name = c.quoted()?;
        c.expect('-')?;
        c.expect('>')?;
        let output = c.quoted()?;
        c.expect(':')?;
        module.states.push(StateSlot { input: name, output, shape: shape(c, &module.dims)? });
    }
    while c.eat_word("output") {
        module.outputs.push(output(c)?);
    }
    // Offsets first, lines afterwards in one pass.
    let mut starts = Vec::new();
    while c.peek() == Some('%') {
        starts.push(c.pos());
        let node = op(c, &module.dims, module.ops.len())?;
        module.ops.push(node);
    }
    c.expect('}')?;
    if c.peek().is_some() {
        let pos = c.pos();
        return Err(c.error_at(pos, "text after the end of the module"));
    }
    Ok((module, lines(text, &starts)))
}

fn lines(text: &str, starts: &[usize]) -> Vec<usize> {
    let mut line = 1;
    let mut from = 0;
    let mut out = Vec::with_capacity(starts.len());
    for start in starts {
        line += text.get(from..*start).unwrap_or("").matches('\n').count();
        from = *start;
        out.push(line);
    }
    out
}

fn header(c: &mut Cursor) -> Result<Module> {
    c.expect_word("module")?;
    let name = c.quoted()?;
    let stage = choice(c, "stage", [Stage::Lowered, Stage::Expanded, Stage::Scheduled], Stage::name)?;
    let setting = choice(c, "setting", Setting::ALL, Setting::name)?;
    c.expect('{')?;
    Ok(Module::empty(name, setting, stage, Dims::default()))
}

fn choice<T: Copy, const N: usize>(
    c: &mut Cursor,
    key: &str,
    all: [T; N],
    name: impl Fn(T) -> &'static str,
) -> Result<T> {
    c.expect_word(key)?;
    c.expect('(')?;
    let value = one_of(c, all, name)?;
    c.expect(')')?;
    Ok(value)
}

fn one_of<T: Copy, const N: usize>(c: &mut Cursor, all: [T; N], name: impl Fn(T) -> &'static str) -> Result<T> {
    let pos = c.pos();
    let mut word = c.word()?;
    while c.eat('-') {
        word = format!("{word}-{}", c.word()?);
    }
    all.into_iter().find(|x| name(*x) == word).ok_or_else(|| {
        let names: Vec<_> = all.into_iter().map(&name).collect();
        c.error_at(pos, format!("expected {}, found `{word}`", names.join(" or ")))
    })
}

/// Reads a symbol with its range after the word `size`.
///
/// # Errors
/// `E0370` for another form, and for a symbol that is there.
pub fn parse_size(c: &mut Cursor, dims: &mut Dims) -> Result<()> {
    let pos = c.pos();
    let name = c.word()?;
    let known = dims.find(&name).is_some();
    let sym = dims.symbol(&name).map_err(|d| c.error_at(pos, d.message))?;
    if known {
        return Err(c.error_at(pos, format!("the size `{name}` is declared twice")));
    }
    let min = c.number()?;
    c.expect('.')?;
    c.expect('.')?;
    let max = if c.eat('*') { None } else { Some(c.number()?) };
    if let Some(info) = dims.info_mut(sym) {
        (info.min, info.max) = (min, max);
    }
    Ok(())
}

fn shape(c: &mut Cursor, dims: &Dims) -> Result<Vec<Dim>> {
    let pos = c.pos();
    let items = c.list('[', ']')?;
    items.iter().map(|t| dims.parse(t).map_err(|d| c.error_at(pos, d.message))).collect()
}

fn count(c: &mut Cursor, dims: &Dims) -> Result<Count> {
    let pos = c.pos();
    let name = c.word()?;
    let sym = dims.find(&name).ok_or_else(|| c.error_at(pos, format!("no size is called `{name}`")))?;
    c.expect('=')?;
    c.expect_word("true")?;
    c.expect_word("of")?;
    let mask = c.number()?;
    c.expect_word("in")?;
    Ok(Count { sym, mask, shape: shape(c, dims)? })
}

fn input(c: &mut Cursor, dims: &Dims) -> Result<InputSlot> {
    let name = c.quoted()?;
    let (dtype, shape) = parse_type(c, dims)?;
    Ok(InputSlot { name, dtype, shape })
}

/// Reads the type of a public tensor, such as `: f32[seq, 4]`.
///
/// # Errors
/// `E0370` for another form.
pub fn parse_type(c: &mut Cursor, dims: &Dims) -> Result<(plain::DType, Vec<Dim>)> {
    c.expect(':')?;
    let pos = c.pos();
    let word = c.word()?;
    let dtype = dtype(&word).ok_or_else(|| c.error_at(pos, format!("expected f32, i64 or bool, found `{word}`")))?;
    Ok((dtype, shape(c, dims)?))
}

fn output(c: &mut Cursor) -> Result<OutputSlot> {
    let name = c.quoted()?;
    c.expect(':')?;
    let kinds = [OutputKind::NextToken, OutputKind::Tensor, OutputKind::Index, OutputKind::Guard];
    let kind = one_of(c, kinds, kind_name)?;
    c.expect_word("to")?;
    Ok(OutputSlot { name, kind, to: one_of(c, Party::ALL, Party::name)? })
}

/// `%i = name %a, %b {…} : type @ "node" layer n as "kind" rot r`
fn op(c: &mut Cursor, dims: &Dims, index: usize) -> Result<Node> {
    number_of(c, '%', "", index)?;
    c.expect('=')?;
    let pos = c.pos();
    let name = c.word()?;
    let mut args = Vec::new();
    while c.peek() == Some('%') || (!args.is_empty() && c.eat(',')) {
        c.expect('%')?;
        args.push(Id(c.number()?));
    }
    let mut attrs = Attrs::read(c, &name, dims)?;
    let made = Op::read(&name, &mut attrs).and_then(|op| attrs.end().map(|()| op));
    let op = made.map_err(|d| d.at(c.place(pos)))?;
    c.expect(':')?;
    let ty = ty(c, dims)?;
    let mut origin = Origin::default();
    if c.eat('@') {
        origin.node = c.quoted()?;
        if c.eat_word("layer") {
            origin.layer = Some(c.number()?);
        }
        if c.eat_word("as") {
            origin.kind = c.quoted()?;
        }
    }
    let rot = if c.eat_word("rot") { c.number()? } else { 0 };
    Ok(Node { op, args, ty, origin, rot })
}

/// Reads the number that a definition must have.
fn number_of(c: &mut Cursor, mark: char, prefix: &str, expected: usize) -> Result<()> {
    c.expect(mark)?;
    let pos = c.pos();
    let word = c.word()?;
    if word != format!("{prefix}{expected}") {
        return Err(c.error_at(pos, format!("expected the definition of {mark}{prefix}{expected}, found `{word}`")));
    }
    Ok(())
}

fn ty(c: &mut Cursor, dims: &Dims) -> Result<Ty> {
    let pos = c.pos();
    let word = c.word()?;
    let elem = elem(&word).ok_or_else(|| {
        c.error_at(pos, format!("expected an element type such as ring64.16, bit or f32, found `{word}`"))
    })?;
    let shape = shape(c, dims)?;
    let sharing = one_of(c, Sharing::ALL, Sharing::name)?;
    let (mut bound, mut bound_from) = (0, BoundFrom::Proven);
    let mut norms = Norms::default();
    let at = c.pos();
    if c.eat('<') {
        if !matches!(elem, Elem::Ring { .. }) {
            return Err(c.error_at(at, "only ring elements have a bound".to_string()));
        }
        bound = c.number()?;
        norms = Norms { size: norm(c, "size")?, rows: norm(c, "rows")?, columns: norm(c, "columns")? };
        let marks = BoundFrom::ALL.into_iter().filter(|m| *m != BoundFrom::Proven);
        bound_from = marks.into_iter().find(|m| c.eat_word(m.name())).unwrap_or(BoundFrom::Proven);
    }
    Ok(Ty { elem, sharing, shape, bound, bound_from, norms })
}

/// A number of bits behind its name, if the name is next.
fn norm(c: &mut Cursor, name: &str) -> Result<Option<u16>> {
    if !c.eat_word(name) {
        return Ok(None);
    }
    let pos = c.pos();
    let word = c.word()?;
    let n = norms::read(&word);
    n.map(Some).ok_or_else(|| c.error_at(pos, format!("expected bits such as 20, 20.5 or 20.07, found `{word}`")))
}

fn elem(word: &str) -> Option<Elem> {
    if word == "bit" {
        return Some(Elem::Bit);
    }
    match word.strip_prefix("ring") {
        Some(ring) => {
            let (bits, scale) = ring.split_once('.')?;
            Some(Elem::Ring { bits: bits.parse().ok()?, scale: scale.parse().ok()? })
        }
        None => dtype(word).map(Elem::Plain),
    }
}

fn program(c: &mut Cursor, dims: &Dims) -> Result<plain::Program> {
    c.expect('{')?;
    let mut program = plain::Program::default();
    while c.peek() == Some('$') {
        let start = c.pos();
        let (input, number) = value_name(c)?;
        let expected = if input { program.inputs.len() } else { program.nodes.len() };
        if usize::try_from(number) != Ok(expected) || (input && !program.nodes.is_empty()) {
            return Err(c.error_at(start, format!("expected definitions in order, inputs first; next is {expected}")));
        }
        c.expect('=')?;
        if input {
            c.expect_word("input")?;
            let name = c.quoted()?;
            let (dtype, shape) = parse_type(c, dims)?;
            program.inputs.push(plain::Input { name, dtype, shape });
            continue;
        }
        let pos = c.pos();
        let name = c.word()?;
        let inputs = values(c)?;
        let mut attrs = Attrs::read(c, &name, dims)?;
        let made = tensor_op(&name, &mut attrs).and_then(|op| attrs.end().map(|()| op));
        let op = made.map_err(|d| d.at(c.place(pos)))?;
        let (dtype, shape) = parse_type(c, dims)?;
        program.nodes.push(plain::Node { op, inputs, dtype, shape });
    }
    if c.eat_word("return") {
        program.outputs = values(c)?;
    }
    c.expect('}')?;
    Ok(program)
}

fn values(c: &mut Cursor) -> Result<Vec<plain::ValueRef>> {
    let mut out = Vec::new();
    while c.peek() == Some('$') || (!out.is_empty() && c.eat(',')) {
        let (input, number) = value_name(c)?;
        out.push(if input { plain::ValueRef::Input(number) } else { plain::ValueRef::Node(number) });
    }
    Ok(out)
}

/// `$i3` is input 3, `$3` is node 3.
fn value_name(c: &mut Cursor) -> Result<(bool, u32)> {
    c.expect('$')?;
    let pos = c.pos();
    let word = c.word()?;
    let digits = word.strip_prefix('i');
    let number = digits.unwrap_or(&word).parse().ok();
    let number = number.ok_or_else(|| c.error_at(pos, format!("expected a value such as $3, found `${word}`")))?;
    Ok((digits.is_some(), number))
}
