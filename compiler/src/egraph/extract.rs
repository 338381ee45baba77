//! The cheapest program of an e-graph, each shared value counted once.
//!
//! A program is a choice of one term for every class that the roots need. Its price is that of lowering: which values
//! are truncated depends on who uses them, so a program is priced whole, in two passes like lowering's. Candidates are
//! the program as it was, a greedy choice that carries sets of what was paid for, and the program as it was with all
//! terms of one rule; the best is improved one class at a time. In the end every change that gains next to nothing is
//! taken back: rewritten values are rounded elsewhere. The program as it was is a candidate, so nothing gets costlier.

use super::cost::{Costs, Form, STEPS, Sent, Terms, wants_rescaled};
use super::language::{Analysis, Facts, Head};
use crate::graph::{Op, Owner, TensorOp};
use ombra_ir::plain::{Binary, Reduce, Type, Unary};
use std::collections::BTreeMap;

/// A change that gains less than this part of a region's price is taken back.
const LEAST_GAIN: f64 = 1e-4;
/// Rounds of improvement, and of the greedy choice.
const ROUNDS: usize = 8;
/// Classes that improvement may price in all: the bound on its work for regions with very many terms.
const PRICED: usize = 2_000_000;

/// A term of a class, over classes by number.
#[derive(Clone, Debug)]
pub struct Term {
    /// Its root.
    pub head: Head,
    /// Operands.
    pub args: Vec<usize>,
    /// The rule that made it; `None` for a term that was there.
    pub rule: Option<usize>,
}

/// A class: its terms and what is known of them.
#[derive(Clone, Debug)]
pub struct Class {
    /// What is known.
    pub facts: Facts,
    /// Its terms, in a fixed order.
    pub terms: Vec<Term>,
    /// The term that stood in the program, if the class did.
    pub original: Option<usize>,
}

/// An extraction problem.
pub struct Problem<'a> {
    /// Classes by number.
    pub classes: Vec<Class>,
    /// What must be computed, and whether as shares at the common scale.
    pub roots: Vec<(usize, bool)>,
    /// Operators of heads.
    pub analysis: &'a Analysis,
}

/// A chosen term for every class; those of classes that the roots do not need do not matter.
pub type Choice = Vec<usize>;

/// What a program costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// Bytes sent in the reference steps.
    pub bytes: f64,
    /// Bytes of sharing private weights.
    pub setup: f64,
    /// Longest chain of rounds in each reference step.
    pub rounds: [u32; STEPS.len()],
    /// Bytes that stand for local work.
    pub work: f64,
    /// All of it in bytes, rounds included.
    pub total: f64,
}

/// One value of a priced program.
#[derive(Clone, Copy, Debug)]
struct Value {
    owner: Owner,
    fixed: bool,
    form: Form,
    depth: [u32; STEPS.len()],
}

impl Problem<'_> {
    fn op(&self, class: usize, choice: &Choice) -> Option<&Op> {
        self.analysis.op(self.term(class, choice).head)
    }

    fn term(&self, class: usize, choice: &Choice) -> &Term {
        &self.classes[class].terms[choice[class]]
    }

    fn shape(&self, class: usize) -> &[ombra_ir::Dim] {
        &self.classes[class].facts.ty.shape
    }

    /// The classes that the roots need, operands first; `None` if the choice is circular.
    pub fn order(&self, choice: &Choice) -> Option<Vec<usize>> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.classes.len()];
        let mut order = Vec::new();
        let mut stack: Vec<usize> = self.roots.iter().rev().map(|r| r.0).collect();
        while let Some(&class) = stack.last() {
            match marks[class] {
                Mark::Done => {
                    stack.pop();
                }
                Mark::Open => {
                    marks[class] = Mark::Done;
                    order.push(class);
                    stack.pop();
                }
                Mark::New => {
                    marks[class] = Mark::Open;
                    for &arg in self.term(class, choice).args.iter().rev() {
                        match marks[arg] {
                            Mark::New => stack.push(arg),
                            // Open and not just waiting on the stack: it is below this class.
                            Mark::Open => return None,
                            Mark::Done => {}
                        }
                    }
                }
            }
        }
        Some(order)
    }

    /// Owner of a chosen term and whether it is fixed.
    fn owned(&self, class: usize, choice: &Choice, values: &BTreeMap<usize, Value>) -> (Owner, bool) {
        let term = self.term(class, choice);
        if let Head::Leaf(n) = term.head {
            return self.analysis.leaves.get(n as usize).map_or((Owner::Secret, false), |f| (f.owner, f.fixed));
        }
        let args = || term.args.iter().filter_map(|a| values.get(a));
        let fixed = self.classes[class].facts.fixed && args().all(|v| v.fixed);
        match args().fold(Owner::Public, |owner, v| owner.join(v.owner)) {
            Owner::Server if !fixed => (Owner::Secret, fixed),
            Owner::Client => (Owner::Secret, fixed),
            owner => (owner, fixed),
        }
    }

    /// The operand whose transpose a product takes without computing it.
    fn behind_turn(&self, class: usize, choice: &Choice) -> usize {
        let rank = self.shape(class).len();
        match self.op(class, choice) {
            Some(Op::Tensor(TensorOp::Transpose { perm })) if rank >= 2 => {
                let mut swap: Vec<usize> = (0..rank).collect();
                swap.swap(rank - 1, rank - 2);
                if *perm == swap { self.term(class, choice).args[0] } else { class }
            }
            _ => class,
        }
    }

    /// Operands as a product takes them.
    fn taken(&self, class: usize, choice: &Choice) -> Vec<usize> {
        let args = &self.term(class, choice).args;
        match (self.op(class, choice), args.as_slice()) {
            (Some(Op::Tensor(TensorOp::MatMul)), &[a, b]) => vec![a, self.behind_turn(b, choice)],
            _ => args.clone(),
        }
    }

    /// Prices a program; `None` if it is circular.
    pub fn price(&self, choice: &Choice, costs: &mut Costs) -> Option<Price> {
        let order = self.order(choice)?;
        let mut values: BTreeMap<usize, Value> = BTreeMap::new();
        for &class in &order {
            let (owner, fixed) = self.owned(class, choice, &values);
            values.insert(class, Value { owner, fixed, form: costs.rescaled(), depth: Default::default() });
        }
        let secret = |class: usize| values[&class].owner == Owner::Secret;
        let mut rescaled: BTreeMap<usize, bool> = self.roots.iter().copied().filter(|r| r.1).collect();
        let mut used: BTreeMap<usize, ()> = self.roots.iter().map(|r| (r.0, ())).collect();
        for &class in order.iter().filter(|&&c| secret(c)) {
            let Some(op) = self.op(class, choice) else { continue };
            let args = self.taken(class, choice);
            let private = args.iter().all(|&a| values[&a].owner != Owner::Public);
            let wants = wants_rescaled(op, private);
            for arg in args {
                used.insert(arg, ());
                if wants {
                    rescaled.insert(arg, true);
                }
            }
        }
        let mut price = Price::default();
        for &class in &order {
            let value = values[&class];
            match value.owner {
                // A transpose that only products look behind is never computed.
                Owner::Secret if !used.contains_key(&class) => continue,
                Owner::Secret => {}
                owner => {
                    if matches!(self.term(class, choice).head, Head::Op(_)) {
                        price.work += costs.known();
                        if owner == Owner::Public && !value.fixed {
                            price.work += costs.work(self.shape(class), None);
                        }
                    }
                    if owner == Owner::Server && used.contains_key(&class) {
                        price.setup += costs.sharing(self.shape(class));
                    }
                    continue;
                }
            }
            let (form, sent, work) = self.value(class, choice, &values, costs);
            let mut depth = self.begin(class, choice, &values);
            let rescale =
                if rescaled.contains_key(&class) { costs.rescale(form, self.shape(class)) } else { Sent::default() };
            for (step, depth) in depth.iter_mut().enumerate() {
                *depth += sent.rounds[step] + rescale.rounds[step];
                price.rounds[step] = price.rounds[step].max(*depth);
            }
            price.bytes += sent.bytes + rescale.bytes;
            price.work += work;
            let form = if rescaled.contains_key(&class) { costs.rescaled() } else { form };
            values.insert(class, Value { form, depth, ..value });
        }
        price.total = price.bytes + price.setup + price.work + costs.latency(price.rounds);
        Some(price)
    }

    /// When the operands of a class are ready.
    fn begin(&self, class: usize, choice: &Choice, values: &BTreeMap<usize, Value>) -> [u32; STEPS.len()] {
        let mut depth = [0; STEPS.len()];
        for arg in self.taken(class, choice) {
            for (step, depth) in depth.iter_mut().enumerate() {
                *depth = (*depth).max(values[&arg].depth[step]);
            }
        }
        depth
    }

    /// How a secret value falls out, what that sends and what it takes locally.
    fn value(
        &self,
        class: usize,
        choice: &Choice,
        values: &BTreeMap<usize, Value>,
        costs: &mut Costs,
    ) -> (Form, Sent, f64) {
        let rescaled = costs.rescaled();
        let f = rescaled.scale;
        let none = Sent::default();
        let Some(op) = self.op(class, choice) else { return (rescaled, none, 0.0) };
        let args = self.taken(class, choice);
        let shape = self.shape(class);
        let of = |slot: usize| args.get(slot).map(|a| values[a]).filter(|v| v.owner != Owner::Public);
        let form = |slot: usize| of(slot).map_or(rescaled, |v| v.form);
        let weaker = |a: Form, b: Form| Form { scale: a.scale.max(b.scale), terms: a.terms.max(b.terms) };
        let pass = costs.work(shape, None);
        match op {
            Op::Tensor(TensorOp::MatMul) => {
                let both = of(0).is_some() && of(1).is_some();
                let terms = if both { Terms::Three } else { Terms::Two };
                let inner = self.shape(self.term(class, choice).args[0]).last().cloned().unwrap_or_default();
                let work = costs.work(shape, Some((&inner, if both { 2.0 } else { 1.0 })));
                (Form { scale: 2 * f, terms }, none, work)
            }
            Op::Tensor(TensorOp::Binary(Binary::Add | Binary::Sub)) => match (of(0), of(1)) {
                (Some(a), Some(b)) => (weaker(a.form, b.form), none, pass),
                (a, b) => (a.or(b).map_or(rescaled, |v| v.form), none, pass),
            },
            Op::Tensor(TensorOp::Binary(Binary::Mul | Binary::Div)) => match (of(0), of(1)) {
                (Some(_), Some(_)) => (Form { scale: 2 * f, terms: Terms::Three }, none, pass),
                (a, b) => {
                    let (known, at) = if b.is_none() { (1, 0) } else { (0, 1) };
                    let x = a.or(b).map_or(rescaled, |v| v.form);
                    let facts = args.get(known).map(|&k| &self.classes[k].facts);
                    match facts.and_then(|f| f.full.filter(|_| f.ty.shape.len() <= 1)) {
                        Some(k) => scaled(
                            x,
                            if matches!(op, Op::Tensor(TensorOp::Binary(Binary::Div))) { 1.0 / k } else { k },
                            pass,
                        ),
                        None if x.scale <= 2 * f => (Form { scale: x.scale + f, ..x }, none, pass),
                        None => {
                            let first = costs.rescale(x, self.shape(args[at]));
                            (Form { scale: 2 * f, terms: Terms::Shares }, first, pass)
                        }
                    }
                }
            },
            Op::Pow(p) if *p == 2.0 => (Form { scale: 2 * f, terms: Terms::Three }, none, pass),
            Op::Tensor(TensorOp::Unary(Unary::Neg) | TensorOp::Reduce { kind: Reduce::Sum, .. }) => {
                (form(0), none, pass)
            }
            Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, .. }) => {
                (Form { scale: form(0).scale + 20, ..form(0) }, none, pass)
            }
            Op::Tensor(TensorOp::Reshape { .. }) => (form(0), none, 0.0),
            Op::Tensor(TensorOp::Transpose { .. } | TensorOp::Slice { .. } | TensorOp::Expand { .. }) => {
                (form(0), none, pass)
            }
            Op::Tensor(TensorOp::Gather { .. }) if args.get(1).is_some_and(|i| values[i].owner == Owner::Public) => {
                (form(0), none, pass)
            }
            Op::Tensor(TensorOp::Concat { .. }) => ((0..args.len()).map(form).fold(rescaled, weaker), none, pass),
            _ => {
                let types: Vec<(Type, Owner)> =
                    args.iter().map(|&a| (self.classes[a].facts.ty.clone(), values[&a].owner)).collect();
                let sent = costs.probe(op, &types, shape);
                (rescaled, sent, pass)
            }
        }
    }

    /// The program as it was: classes that were in it have their term of then, others their first.
    pub fn original(&self) -> Choice {
        self.classes.iter().map(|c| c.original.unwrap_or(0)).collect()
    }

    /// The best program found, and its price; the program as it was if nothing is better.
    pub fn solve(&self, costs: &mut Costs) -> Option<(Choice, Price, Price)> {
        let fallback = self.original();
        let greedy = self.greedy(costs);
        // Classes that were not in the program have no term of then: they take the greedy one.
        let complete = |choice: &Choice| -> Choice {
            let pick = |(i, class): (usize, &Class)| if class.original.is_some() { choice[i] } else { greedy[i] };
            self.classes.iter().enumerate().map(pick).collect()
        };
        let original = complete(&fallback);
        let before = self.price(&original, costs)?;
        let mut best = (original.clone(), before);
        let consider = |choice: Choice, best: &mut (Choice, Price), costs: &mut Costs| {
            if let Some(price) = self.price(&choice, costs).filter(|p| p.total < best.1.total) {
                *best = (choice, price);
                return true;
            }
            false
        };
        consider(greedy.clone(), &mut best, costs);
        let rules: std::collections::BTreeSet<usize> =
            self.classes.iter().flat_map(|c| c.terms.iter().filter_map(|t| t.rule)).collect();
        for rule in rules {
            let pick = |(i, class): (usize, &Class)| {
                class.terms.iter().position(|t| t.rule == Some(rule)).unwrap_or(original[i])
            };
            consider(self.classes.iter().enumerate().map(pick).collect(), &mut best, costs);
        }
        let mut priced = 0;
        for _ in 0..ROUNDS {
            let mut changed = false;
            let Some(order) = self.order(&best.0) else { break };
            let size = order.len();
            for class in order {
                for term in 0..self.classes[class].terms.len() {
                    if term != best.0[class] && priced < PRICED {
                        priced += size;
                        let mut choice = best.0.clone();
                        choice[class] = term;
                        changed |= consider(choice, &mut best, costs);
                    }
                }
            }
            if !changed {
                break;
            }
        }
        // Back to what was there, where that loses next to nothing.
        let least = before.total * LEAST_GAIN;
        for class in self.order(&best.0)? {
            let Some(term) = self.classes[class].original.filter(|&t| t != best.0[class]) else { continue };
            let mut choice = best.0.clone();
            choice[class] = term;
            if let Some(price) = self.price(&choice, costs).filter(|p| p.total <= best.1.total + least) {
                best = (choice, price);
            }
        }
        if best.1.total > before.total {
            best = (original, before);
        }
        Some((best.0, before, best.1))
    }

    /// For every class the term whose program is cheapest when what is shared in it is counted once, from the leaves up,
    /// until nothing changes. A private value is taken to be rescaled by whoever needs it so.
    fn greedy(&self, costs: &mut Costs) -> Choice {
        let mut best: Vec<Option<Paid>> = vec![None; self.classes.len()];
        let mut choice = self.original();
        for _ in 0..ROUNDS {
            let mut changed = false;
            for class in 0..self.classes.len() {
                let mut chosen = choice[class];
                for term in 0..self.classes[class].terms.len() {
                    choice[class] = term;
                    let Some(paid) = self.pay(class, &choice, &best, costs) else { continue };
                    if best[class].as_ref().is_none_or(|b| paid.total < b.total) {
                        best[class] = Some(paid);
                        chosen = term;
                        changed = true;
                    }
                }
                choice[class] = chosen;
            }
            if !changed {
                break;
            }
        }
        choice
    }

    /// What a class with its chosen term costs with all that it needs; `None` while an operand is unknown or it needs
    /// itself.
    fn pay(&self, class: usize, choice: &Choice, best: &[Option<Paid>], costs: &mut Costs) -> Option<Paid> {
        let mut values: BTreeMap<usize, Value> = BTreeMap::new();
        let mut items: BTreeMap<(usize, bool), f64> = BTreeMap::new();
        let args = self.term(class, choice).args.clone();
        for &arg in &args {
            let paid = best[arg].as_ref()?;
            if paid.items.contains_key(&(class, false)) {
                return None;
            }
            values.insert(arg, paid.value);
        }
        let (owner, fixed) = self.owned(class, choice, &values);
        let mut value = Value { owner, fixed, form: costs.rescaled(), depth: Default::default() };
        let taken = self.taken(class, choice);
        for &arg in &taken {
            values.insert(arg, best[arg].as_ref()?.value);
        }
        let private = taken.iter().all(|a| values[a].owner != Owner::Public);
        let wants = self.op(class, choice).is_some_and(|op| wants_rescaled(op, private));
        let mut own = 0.0;
        if owner == Owner::Secret {
            for &arg in &taken {
                let paid = best[arg].as_ref()?;
                items.extend(paid.items.iter().map(|(k, v)| (*k, *v)));
                let mut depth = paid.value.depth;
                if values[&arg].owner == Owner::Server {
                    items.insert((arg, true), costs.sharing(self.shape(arg)));
                }
                if wants && values[&arg].owner == Owner::Secret {
                    let rescale = costs.rescale(paid.value.form, self.shape(arg));
                    items.insert((arg, true), rescale.bytes);
                    depth.iter_mut().zip(rescale.rounds).for_each(|(d, r)| *d += r);
                    values.insert(arg, Value { form: costs.rescaled(), ..paid.value });
                }
                value.depth.iter_mut().zip(depth).for_each(|(d, r)| *d = (*d).max(r));
            }
            let (form, sent, work) = self.value(class, choice, &values, costs);
            value.form = form;
            value.depth.iter_mut().zip(sent.rounds).for_each(|(d, r)| *d += r);
            own = sent.bytes + work;
        } else {
            for &arg in &args {
                items.extend(best[arg].as_ref()?.items.iter().map(|(k, v)| (*k, *v)));
            }
            if matches!(self.term(class, choice).head, Head::Op(_)) {
                own = costs.known();
            }
        }
        items.insert((class, false), own);
        // Compared as shares, since that is how most values end.
        let (last, mut depth) = (costs.rescale(value.form, self.shape(class)), value.depth);
        depth.iter_mut().zip(last.rounds).for_each(|(d, r)| *d += r);
        let mut total = items.values().sum::<f64>() + costs.latency(depth);
        match owner {
            Owner::Secret => total += last.bytes,
            Owner::Server => total += costs.sharing(self.shape(class)),
            Owner::Public | Owner::Client => {}
        }
        Some(Paid { items, value, total })
    }
}

/// What the greedy choice has paid for a class: every class and every rescaling once.
#[derive(Clone, Debug)]
struct Paid {
    items: BTreeMap<(usize, bool), f64>,
    value: Value,
    total: f64,
}

/// A secret value times a constant: powers of two only move the point.
fn scaled(x: Form, k: f32, pass: f64) -> (Form, Sent, f64) {
    let log2 = libm::log2(f64::from(k.abs()));
    if !log2.is_finite() {
        return (x, Sent::default(), pass);
    }
    if log2 == libm::floor(log2) && (-16.0..=16.0).contains(&log2) {
        return (Form { scale: x.scale - log2 as i32, ..x }, Sent::default(), 0.0);
    }
    let bits = (13.0 - libm::floor(log2)).clamp(0.0, 30.0) as i32;
    (Form { scale: x.scale + bits, ..x }, Sent::default(), pass)
}
