//! Symbolic sizes: polynomials with integer coefficients over named sizes such as `batch`, `seq` and `past`.
//!
//! A [`Dim`] is always in canonical form, so equality of structure is equality of polynomials.
//! Symbols are numbers into a [`Dims`] table, which knows their names and ranges; a [`Bindings`] gives them values.
//! Degree, number of terms and coefficients are bounded, and every operation that could leave the bounds says so.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::{Diagnostic, Result};

/// Most terms a polynomial may have.
pub const MAX_TERMS: usize = 64;
/// Highest total degree of a term.
pub const MAX_DEGREE: usize = 8;
/// Most symbols of one table.
pub const MAX_SYMBOLS: usize = 4096;

/// A symbolic size: its place in a [`Dims`] table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sym(pub u32);

/// What is known of one symbol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymInfo {
    /// Name as printed and parsed: a letter or `_`, then letters, digits, `_` and `.`.
    pub name: String,
    /// Smallest value the symbol takes.
    pub min: u64,
    /// Largest value the symbol takes; `None` when nothing limits it.
    pub max: Option<u64>,
}

/// The symbols of one program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dims {
    /// Indexed by [`Sym`].
    pub syms: Vec<SymInfo>,
}

/// Values of symbols for one evaluation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bindings {
    values: Vec<Option<u64>>,
}

/// A polynomial over symbols: `constant + Σ coefficient · product of symbols`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "RawDim")]
pub struct Dim {
    constant: i64,
    terms: Vec<Term>,
}

/// One term of a [`Dim`] of degree one or more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Term {
    /// Never zero.
    pub coefficient: i64,
    /// Ascending, with repetition for powers, never empty.
    pub symbols: Vec<Sym>,
}

#[derive(Deserialize)]
struct RawDim {
    constant: i64,
    terms: Vec<Term>,
}

impl TryFrom<RawDim> for Dim {
    type Error = String;

    fn try_from(raw: RawDim) -> std::result::Result<Self, String> {
        let sorted = raw.terms.windows(2).all(|pair| match pair {
            [a, b] => order(&a.symbols, &b.symbols) == Ordering::Less,
            _ => true,
        });
        let terms_ok = raw.terms.iter().all(|t| {
            t.coefficient != 0 && !t.symbols.is_empty() && t.symbols.len() <= MAX_DEGREE && t.symbols.is_sorted()
        });
        if !sorted || !terms_ok || raw.terms.len() > MAX_TERMS {
            return Err("a symbolic size is not in canonical form".into());
        }
        Ok(Dim { constant: raw.constant, terms: raw.terms })
    }
}

/// Graded order of monomials, compatible with multiplication: lower degree first, then the earlier symbol.
fn order(a: &[Sym], b: &[Sym]) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

fn overflow() -> Diagnostic {
    Diagnostic::input("E0201", "a symbolic size grows too large")
        .note(format!("expected at most {MAX_TERMS} terms of degree {MAX_DEGREE} with 64-bit coefficients"))
}

impl From<Sym> for Dim {
    fn from(sym: Sym) -> Self {
        Dim { constant: 0, terms: vec![Term { coefficient: 1, symbols: vec![sym] }] }
    }
}

impl From<u32> for Dim {
    fn from(value: u32) -> Self {
        Dim::constant(value.into())
    }
}

impl Dim {
    /// The constant `value`.
    pub const fn constant(value: i64) -> Self {
        Dim { constant: value, terms: Vec::new() }
    }

    /// The constant `value`, or an error when it is beyond 2^63 - 1.
    pub fn from_usize(value: usize) -> Result<Self> {
        i64::try_from(value).map(Dim::constant).map_err(|_| overflow())
    }

    /// The value, when no symbol occurs.
    pub fn as_constant(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The symbol, when this is one symbol alone.
    pub fn as_symbol(&self) -> Option<Sym> {
        match (self.constant, self.terms.as_slice()) {
            (0, [Term { coefficient: 1, symbols }]) if symbols.len() == 1 => symbols.first().copied(),
            _ => None,
        }
    }

    /// Whether this is the constant `value`.
    pub fn is(&self, value: i64) -> bool {
        self.as_constant() == Some(value)
    }

    /// The term of degree zero.
    pub fn constant_term(&self) -> i64 {
        self.constant
    }

    /// The terms of degree one and more, in canonical order.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    fn collect(constant: i128, mut terms: Vec<(i128, Vec<Sym>)>) -> Result<Dim> {
        terms.sort_by(|a, b| order(&a.1, &b.1));
        let mut merged: Vec<(i128, Vec<Sym>)> = Vec::with_capacity(terms.len());
        for (coefficient, symbols) in terms {
            match merged.last_mut() {
                Some(last) if last.1 == symbols => {
                    last.0 = last.0.checked_add(coefficient).ok_or_else(overflow)?;
                }
                _ => merged.push((coefficient, symbols)),
            }
        }
        merged.retain(|(coefficient, _)| *coefficient != 0);
        if merged.len() > MAX_TERMS || merged.iter().any(|(_, s)| s.len() > MAX_DEGREE) {
            return Err(overflow());
        }
        let terms = merged
            .into_iter()
            .map(|(c, symbols)| Ok(Term { coefficient: i64::try_from(c).map_err(|_| overflow())?, symbols }))
            .collect::<Result<_>>()?;
        Ok(Dim { constant: i64::try_from(constant).map_err(|_| overflow())?, terms })
    }

    fn spread(&self) -> impl Iterator<Item = (i128, Vec<Sym>)> + '_ {
        self.terms.iter().map(|t| (i128::from(t.coefficient), t.symbols.clone()))
    }

    /// `self + other`.
    pub fn add(&self, other: &Dim) -> Result<Dim> {
        if let (Some(a), Some(b)) = (self.as_constant(), other.as_constant()) {
            return a.checked_add(b).map(Dim::constant).ok_or_else(overflow);
        }
        let constant = i128::from(self.constant) + i128::from(other.constant);
        Dim::collect(constant, self.spread().chain(other.spread()).collect())
    }

    /// `self - other`.
    pub fn sub(&self, other: &Dim) -> Result<Dim> {
        let constant = i128::from(self.constant) - i128::from(other.constant);
        Dim::collect(constant, self.spread().chain(other.spread().map(|(c, s)| (-c, s))).collect())
    }

    /// `self · other`.
    pub fn mul(&self, other: &Dim) -> Result<Dim> {
        if let (Some(a), Some(b)) = (self.as_constant(), other.as_constant()) {
            return a.checked_mul(b).map(Dim::constant).ok_or_else(overflow);
        }
        let constant = i128::from(self.constant) * i128::from(other.constant);
        let mut terms = Vec::new();
        terms.extend(self.spread().map(|(c, s)| (c * i128::from(other.constant), s)));
        terms.extend(other.spread().map(|(c, s)| (c * i128::from(self.constant), s)));
        for (a, left) in self.spread() {
            for (b, right) in other.spread() {
                let mut symbols = left.clone();
                symbols.extend(right);
                symbols.sort_unstable();
                terms.push((a * b, symbols));
            }
        }
        Dim::collect(constant, terms)
    }

    /// The quotient `self / other` when it is a polynomial with integer coefficients, otherwise an error.
    pub fn div_exact(&self, other: &Dim) -> Result<Dim> {
        let inexact = || Diagnostic::input("E0202", "a symbolic size is not a multiple of its divisor");
        let (lead_coefficient, lead_symbols) = other.leading();
        if lead_coefficient == 0 {
            return Err(Diagnostic::input("E0202", "a symbolic size is divided by zero"));
        }
        let mut rest = self.clone();
        let mut quotient = Dim::constant(0);
        // The leading monomial falls at each step, so the terms of the quotient are all different.
        for _ in 0..=MAX_TERMS {
            let (coefficient, symbols) = rest.leading();
            if coefficient == 0 {
                return Ok(quotient);
            }
            if coefficient % lead_coefficient != 0 {
                return Err(inexact());
            }
            let mut left = symbols;
            for s in &lead_symbols {
                let at = left.iter().position(|x| x == s).ok_or_else(inexact)?;
                left.remove(at);
            }
            let part = match left.is_empty() {
                true => Dim::collect(coefficient / lead_coefficient, Vec::new())?,
                false => Dim::collect(0, vec![(coefficient / lead_coefficient, left)])?,
            };
            rest = rest.sub(&part.mul(other)?)?;
            quotient = quotient.add(&part)?;
        }
        Err(inexact())
    }

    fn leading(&self) -> (i128, Vec<Sym>) {
        match self.terms.last() {
            Some(t) => (t.coefficient.into(), t.symbols.clone()),
            None => (self.constant.into(), Vec::new()),
        }
    }

    /// `self` with `value` in place of `sym`.
    pub fn substitute(&self, sym: Sym, value: &Dim) -> Result<Dim> {
        let mut sum = Dim::constant(self.constant);
        for term in &self.terms {
            let mut product = Dim::constant(term.coefficient);
            for s in &term.symbols {
                product = if *s == sym { product.mul(value)? } else { product.mul(&Dim::from(*s))? };
            }
            sum = sum.add(&product)?;
        }
        Ok(sum)
    }

    /// The value with `bindings`; an error when a symbol has none, or the value is negative or beyond 64 bits.
    pub fn eval(&self, bindings: &Bindings) -> Result<u64> {
        u64::try_from(self.eval_signed(bindings)?)
            .map_err(|_| Diagnostic::input("E0203", "a size is negative or beyond 64 bits for the given lengths"))
    }

    /// The value with `bindings`, which may be negative; an error when a symbol has none or a product overflows.
    pub fn eval_signed(&self, bindings: &Bindings) -> Result<i128> {
        let mut sum = i128::from(self.constant);
        for term in &self.terms {
            let mut product = i128::from(term.coefficient);
            for s in &term.symbols {
                let value = bindings
                    .get(*s)
                    .ok_or_else(|| Diagnostic::input("E0204", format!("symbolic size number {} has no value", s.0)))?;
                product = product.checked_mul(value.into()).ok_or_else(overflow)?;
            }
            sum = sum.checked_add(product).ok_or_else(overflow)?;
        }
        Ok(sum)
    }

    /// [`Dim::eval`] as an index.
    pub fn eval_usize(&self, bindings: &Bindings) -> Result<usize> {
        usize::try_from(self.eval(bindings)?)
            .map_err(|_| Diagnostic::input("E0203", "a size is beyond the address space"))
    }
}

impl Bindings {
    /// No symbol has a value.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `sym` the value `value`; symbols beyond [`MAX_SYMBOLS`] are ignored.
    pub fn set(&mut self, sym: Sym, value: u64) {
        let index = sym.0 as usize;
        if index >= MAX_SYMBOLS {
            return;
        }
        if self.values.len() <= index {
            self.values.resize(index + 1, None);
        }
        if let Some(slot) = self.values.get_mut(index) {
            *slot = Some(value);
        }
    }

    /// The value of `sym`.
    pub fn get(&self, sym: Sym) -> Option<u64> {
        self.values.get(sym.0 as usize).copied().flatten()
    }
}

impl Dims {
    /// The symbol called `name`, made when it is new. An error when the name cannot be parsed back or the table is full.
    pub fn symbol(&mut self, name: &str) -> Result<Sym> {
        if let Some(sym) = self.find(name) {
            return Ok(sym);
        }
        if !is_name(name) {
            return Err(Diagnostic::input("E0205", format!("`{}` is no name of a size", name.escape_default()))
                .note("expected a letter or `_`, then letters, digits, `_` and `.`"));
        }
        if self.syms.len() >= MAX_SYMBOLS {
            return Err(Diagnostic::input("E0205", format!("more than {MAX_SYMBOLS} symbolic sizes")));
        }
        let sym = Sym(u32::try_from(self.syms.len()).map_err(|_| overflow())?);
        self.syms.push(SymInfo { name: name.into(), min: 0, max: None });
        Ok(sym)
    }

    /// The symbol called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<Sym> {
        let at = self.syms.iter().position(|s| s.name == name)?;
        u32::try_from(at).ok().map(Sym)
    }

    /// What is known of `sym`.
    pub fn info(&self, sym: Sym) -> Option<&SymInfo> {
        self.syms.get(sym.0 as usize)
    }

    /// What is known of `sym`, to change it.
    pub fn info_mut(&mut self, sym: Sym) -> Option<&mut SymInfo> {
        self.syms.get_mut(sym.0 as usize)
    }

    /// Bindings by name. An error for an unknown name, or a value outside the symbol's range.
    pub fn bind(&self, values: &[(&str, u64)]) -> Result<Bindings> {
        let mut bindings = Bindings::new();
        for (name, value) in values {
            let sym = self.find(name).ok_or_else(|| {
                let known: Vec<_> = self.syms.iter().map(|s| s.name.as_str()).collect();
                Diagnostic::input("E0206", format!("no size is called `{name}`"))
                    .note(format!("known sizes: {}", known.join(", ")))
            })?;
            if let Some(info) = self.info(sym)
                && (*value < info.min || info.max.is_some_and(|max| *value > max))
            {
                let max = info.max.map_or("unlimited".into(), |m| m.to_string());
                return Err(Diagnostic::input("E0206", format!("size `{name}` is {value}, out of its range"))
                    .note(format!("expected {} to {max}", info.min)));
            }
            bindings.set(sym, *value);
        }
        Ok(bindings)
    }

    /// A number `dim` never falls below, or `None` when nothing limits it. Symbols are taken to vary independently.
    pub fn lower(&self, dim: &Dim) -> Option<i128> {
        self.limit(dim, true)
    }

    /// A number `dim` never exceeds, or `None` when nothing limits it. Symbols are taken to vary independently.
    pub fn upper(&self, dim: &Dim) -> Option<i128> {
        self.limit(dim, false)
    }

    fn limit(&self, dim: &Dim, lower: bool) -> Option<i128> {
        let mut sum = i128::from(dim.constant);
        for term in &dim.terms {
            let at_min = (term.coefficient > 0) == lower;
            let mut product = i128::from(term.coefficient);
            for s in &term.symbols {
                let value = if at_min { self.info(*s).map_or(0, |i| i.min) } else { self.info(*s)?.max? };
                product = product.checked_mul(value.into())?;
            }
            sum = sum.checked_add(product)?;
        }
        Some(sum)
    }

    /// `dim` as text, such as `past + seq` or `2*batch*seq - 1`; [`Dims::parse`] reads it back.
    pub fn show(&self, dim: &Dim) -> String {
        let mut out = String::new();
        for term in &dim.terms {
            let names = term.symbols.iter().map(|s| self.info(*s).map_or("?", |i| i.name.as_str()));
            let product = names.collect::<Vec<_>>().join("*");
            join(&mut out, term.coefficient, Some(&product));
        }
        if dim.constant != 0 || dim.terms.is_empty() {
            join(&mut out, dim.constant, None);
        }
        out
    }

    /// `shape` as text, such as `[batch, seq, 96]`.
    pub fn show_shape(&self, shape: &[Dim]) -> String {
        let parts: Vec<_> = shape.iter().map(|d| self.show(d)).collect();
        format!("[{}]", parts.join(", "))
    }

    /// Reads what [`Dims::show`] writes: sums and differences of products of numbers and known names.
    pub fn parse(&self, text: &str) -> Result<Dim> {
        let wrong = |what: String| {
            Diagnostic::input("E0207", what).note("expected a sum of products, such as `past + 2*seq - 1`")
        };
        let mut sum = Dim::constant(0);
        let mut product: Option<Dim> = None;
        let mut negative = false;
        let mut want_factor = true;
        let mut rest = text.trim();
        if rest.is_empty() || rest.len() > 4096 {
            return Err(wrong("a size is empty or too long".into()));
        }
        while let Some(c) = rest.chars().next() {
            match c {
                '+' | '-' if want_factor && product.is_none() => {
                    negative ^= c == '-';
                    rest = rest.get(1..).unwrap_or("");
                }
                '+' | '-' if !want_factor => {
                    sum = add_signed(&sum, product.take(), negative)?;
                    negative = c == '-';
                    want_factor = true;
                    rest = rest.get(1..).unwrap_or("");
                }
                '*' if !want_factor => {
                    want_factor = true;
                    rest = rest.get(1..).unwrap_or("");
                }
                c if want_factor && (c.is_ascii_alphanumeric() || c == '_') => {
                    let end = rest.find(|c: char| !is_name_char(c)).unwrap_or(rest.len());
                    let (word, tail) = rest.split_at(end);
                    let factor = if c.is_ascii_digit() {
                        let value = word.parse().map_err(|_| wrong(format!("`{word}` is no 64-bit number")))?;
                        Dim::constant(value)
                    } else {
                        Dim::from(self.find(word).ok_or_else(|| wrong(format!("no size is called `{word}`")))?)
                    };
                    product = Some(match product {
                        Some(p) => p.mul(&factor)?,
                        None => factor,
                    });
                    want_factor = false;
                    rest = tail;
                }
                _ => return Err(wrong(format!("`{}` is no size", text.escape_default()))),
            }
            rest = rest.trim_start();
        }
        if want_factor {
            return Err(wrong(format!("`{}` ends too early", text.escape_default())));
        }
        add_signed(&sum, product, negative)
    }
}

fn add_signed(sum: &Dim, product: Option<Dim>, negative: bool) -> Result<Dim> {
    let product = product.unwrap_or_default();
    if negative { sum.sub(&product) } else { sum.add(&product) }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

fn is_name(name: &str) -> bool {
    let first_ok = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first_ok && name.len() <= 256 && name.chars().all(is_name_char)
}

fn join(out: &mut String, coefficient: i64, product: Option<&str>) {
    let magnitude = coefficient.unsigned_abs();
    match (out.is_empty(), coefficient < 0) {
        (true, true) => out.push('-'),
        (true, false) => {}
        (false, true) => out.push_str(" - "),
        (false, false) => out.push_str(" + "),
    }
    match product {
        Some(p) if magnitude == 1 => out.push_str(p),
        Some(p) => out.push_str(&format!("{magnitude}*{p}")),
        None => out.push_str(&magnitude.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table() -> (Dims, Dim, Dim, Dim) {
        let mut dims = Dims::default();
        let batch = dims.symbol("batch").expect("a name");
        let past = dims.symbol("past").expect("a name");
        let seq = dims.symbol("seq").expect("a name");
        (dims, batch.into(), past.into(), seq.into())
    }

    #[test]
    fn prints_and_parses() {
        let (dims, batch, past, seq) = table();
        let total = past.add(&seq).unwrap();
        assert_eq!(dims.show(&total), "past + seq");
        assert_eq!(dims.show(&batch.mul(&total).unwrap()), "batch*past + batch*seq");
        assert_eq!(dims.show(&seq.mul(&Dim::constant(-2)).unwrap().add(&Dim::constant(3)).unwrap()), "-2*seq + 3");
        assert_eq!(dims.show(&Dim::constant(0)), "0");
        assert_eq!(dims.parse("seq + past").unwrap(), total);
        assert_eq!(dims.parse("2*batch*seq - 1 - seq*batch").unwrap(), dims.parse("batch*seq-1").unwrap());
        for bad in ["", "+", "seq seq", "seq +", "(seq)", "seq // 2", "9999999999999999999999", "unknown", "*seq"] {
            assert_eq!(dims.parse(bad).unwrap_err().code, "E0207", "{bad}");
        }
    }

    #[test]
    fn divides_exactly_or_refuses() {
        let (dims, batch, past, seq) = table();
        let total = past.add(&seq).unwrap();
        let volume = batch.mul(&total).unwrap().mul(&Dim::constant(96)).unwrap();
        assert_eq!(dims.show(&volume.div_exact(&total).unwrap()), "96*batch");
        assert_eq!(
            volume.div_exact(&batch.mul(&Dim::constant(16)).unwrap()).unwrap(),
            dims.parse("6*past+6*seq").unwrap()
        );
        assert_eq!(Dim::constant(96).div_exact(&Dim::constant(16)).unwrap(), Dim::constant(6));
        assert_eq!(volume.div_exact(&Dim::constant(7)).unwrap_err().code, "E0202");
        assert_eq!(seq.div_exact(&past).unwrap_err().code, "E0202");
        assert_eq!(seq.div_exact(&Dim::constant(0)).unwrap_err().code, "E0202");
        assert_eq!(total.add(&Dim::constant(1)).unwrap().div_exact(&total).unwrap_err().code, "E0202");
    }

    #[test]
    fn evaluates_within_bounds() {
        let (mut dims, _, past, seq) = table();
        let total = past.add(&seq).unwrap();
        let bindings = dims.bind(&[("past", 5), ("seq", 2)]).unwrap();
        assert_eq!(total.eval(&bindings).unwrap(), 7);
        assert_eq!(seq.sub(&past).unwrap().eval(&bindings).unwrap_err().code, "E0203");
        assert_eq!(total.eval(&Bindings::new()).unwrap_err().code, "E0204");
        assert_eq!(dims.bind(&[("nothing", 1)]).unwrap_err().code, "E0206");
        assert_eq!((dims.lower(&total), dims.upper(&total)), (Some(0), None));
        let sym = seq.as_symbol().unwrap();
        dims.info_mut(sym).unwrap().max = Some(8);
        assert_eq!(dims.lower(&Dim::constant(10).sub(&seq).unwrap()), Some(2));
        assert_eq!(dims.bind(&[("seq", 9)]).unwrap_err().code, "E0206");
        assert_eq!(total.substitute(sym, &past).unwrap(), past.mul(&Dim::constant(2)).unwrap());
    }

    #[test]
    fn refuses_growth_and_foreign_forms() {
        let (_, batch, _, _) = table();
        let big = Dim::constant(i64::MAX);
        assert_eq!(big.add(&Dim::constant(1)).unwrap_err().code, "E0201");
        assert_eq!(big.mul(&batch).unwrap().mul(&big).unwrap_err().code, "E0201");
        let mut power = batch.clone();
        for _ in 1..MAX_DEGREE {
            power = power.mul(&batch).unwrap();
        }
        assert_eq!(power.mul(&batch).unwrap_err().code, "E0201");
        let bytes = postcard::to_stdvec(&power).unwrap();
        assert_eq!(postcard::from_bytes::<Dim>(&bytes).unwrap(), power);
        let twisted = (0i64, vec![(1i64, vec![2u32, 1u32])]);
        assert!(postcard::from_bytes::<Dim>(&postcard::to_stdvec(&twisted).unwrap()).is_err());
    }

    fn polynomial() -> impl Strategy<Value = Dim> {
        let term = (-4i64..5, proptest::collection::vec(0u32..3, 0..3));
        proptest::collection::vec(term, 0..4).prop_map(|terms| {
            terms.into_iter().fold(Dim::constant(0), |sum, (c, symbols)| {
                let product = symbols.into_iter().fold(Dim::constant(c), |p, s| p.mul(&Dim::from(Sym(s))).unwrap());
                sum.add(&product).unwrap()
            })
        })
    }

    proptest! {
        #[test]
        fn laws_of_polynomials(a in polynomial(), b in polynomial(), x in 0u64..9, y in 0u64..9, z in 0u64..9) {
            let (dims, ..) = table();
            let bindings = dims.bind(&[("batch", x), ("past", y), ("seq", z)]).unwrap();
            let value = |d: &Dim| d.eval_signed(&bindings).unwrap();
            prop_assert_eq!(value(&a.add(&b).unwrap()), value(&a) + value(&b));
            prop_assert_eq!(value(&a.sub(&b).unwrap()), value(&a) - value(&b));
            let product = a.mul(&b).unwrap();
            prop_assert_eq!(value(&product), value(&a) * value(&b));
            prop_assert_eq!(&product, &b.mul(&a).unwrap());
            if !b.is(0) {
                prop_assert_eq!(product.div_exact(&b).unwrap(), a.clone());
            }
            prop_assert_eq!(dims.parse(&dims.show(&product)).unwrap(), product);
        }
    }
}
