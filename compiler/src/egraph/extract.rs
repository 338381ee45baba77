//! The cheapest program of an e-graph.
//!
//! A program is a choice of one term for every class that the roots need. What it costs is what lowering makes of it, so
//! programs are priced whole and only so many: the program as it was, what every set of rules makes of it, and the better
//! of those with one class changed at a time. In the end every change that gains next to nothing is taken back: rewritten
//! values are rounded elsewhere. The program as it was is a candidate, so nothing gets costlier.

use super::language::{Analysis, Facts, Head};
use crate::inspect::session::SessionCost;
use ombra_ir::network::Network;
use std::collections::{BTreeMap, BTreeSet};

/// A change that gains less than this part of a region's price is taken back.
const LEAST_GAIN: f64 = 1e-4;
/// Rounds of improvement.
const ROUNDS: usize = 4;
/// Programs of a region that improvement may lower: the bound on its work for regions with very many terms.
const LOWERED: usize = 256;
/// Rules of which every set is tried; of more, every single one and all together.
const COMBINED: usize = 4;

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
    /// What must be computed.
    pub roots: Vec<usize>,
    /// Operators of heads.
    pub analysis: &'a Analysis,
}

/// A chosen term for every class; those of classes that the roots do not need do not matter.
pub type Choice = Vec<usize>;

/// What programs of a problem cost, each lowered once.
pub struct Costs<'a> {
    cost: &'a dyn Fn(&Choice) -> Option<SessionCost>,
    known: BTreeMap<Vec<(usize, usize)>, Option<SessionCost>>,
}

impl<'a> Costs<'a> {
    /// Those that `cost` finds; nothing for what has no lowering.
    pub fn new(cost: &'a dyn Fn(&Choice) -> Option<SessionCost>) -> Self {
        Costs { cost, known: BTreeMap::new() }
    }

    /// What a program costs; nothing if it is circular or has no lowering.
    fn of(&mut self, problem: &Problem, choice: &Choice) -> Option<SessionCost> {
        let key: Vec<(usize, usize)> = problem.order(choice)?.into_iter().map(|class| (class, choice[class])).collect();
        *self.known.entry(key).or_insert_with(|| (self.cost)(choice))
    }
}

/// A program and what it costs.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its terms.
    pub choice: Choice,
    /// What it costs.
    pub cost: SessionCost,
}

impl Problem<'_> {
    /// Whether some rule says anything of what the roots need.
    pub fn is_open(&self) -> bool {
        let mut seen: BTreeSet<usize> = self.roots.iter().copied().collect();
        let mut open: Vec<usize> = self.roots.clone();
        while let Some(class) = open.pop() {
            for term in &self.classes[class].terms {
                if term.rule.is_some() {
                    return true;
                }
                open.extend(term.args.iter().filter(|&&arg| seen.insert(arg)));
            }
        }
        false
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
        let mut stack: Vec<usize> = self.roots.iter().rev().copied().collect();
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
                    for &arg in self.classes[class].terms[choice[class]].args.iter().rev() {
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

    /// The program as it was. A class that was not in it has a term that a rule made, where there is one: the others are
    /// what the rule that made the class had in hand.
    pub fn original(&self) -> Choice {
        let made = |c: &Class| c.terms.iter().position(|t| t.rule.is_some()).unwrap_or(0);
        self.classes.iter().map(|c| c.original.unwrap_or_else(|| made(c))).collect()
    }

    /// The program as it was and the best one found on a network; nothing where the program as it was has no price.
    pub fn solve(&self, costs: &mut Costs, network: Network) -> Option<(Program, Program)> {
        let original = self.original();
        let before = Program { cost: costs.of(self, &original)?, choice: original.clone() };
        let cheaper = |a: &SessionCost, b: &SessionCost| a.price(network) < b.price(network);
        let mut best: Option<Program> = None;
        for set in self.sets_of_rules() {
            let of_set =
                |class: &Class| class.terms.iter().position(|t| t.rule.is_some_and(|rule| set.contains(&rule)));
            let choice: Choice =
                self.classes.iter().zip(&original).map(|(class, &was)| of_set(class).unwrap_or(was)).collect();
            if let Some(cost) = costs.of(self, &choice)
                && best.as_ref().is_none_or(|best| cheaper(&cost, &best.cost))
            {
                best = Some(Program { choice, cost });
            }
        }
        let mut found = self.improved(before.clone(), costs, network);
        if let Some(other) = best.map(|program| self.improved(program, costs, network))
            && cheaper(&other.cost, &found.cost)
        {
            found = other;
        }
        // Back to what was there, where that loses next to nothing.
        let least = before.cost.price(network) * LEAST_GAIN;
        for class in self.order(&found.choice)? {
            let Some(term) = self.classes[class].original.filter(|&t| t != found.choice[class]) else { continue };
            let mut choice = found.choice.clone();
            choice[class] = term;
            if let Some(cost) = costs.of(self, &choice)
                && cost.price(network) <= found.cost.price(network) + least
            {
                found = Program { choice, cost };
            }
        }
        let found = if cheaper(&before.cost, &found.cost) { before.clone() } else { found };
        Some((before, found))
    }

    /// A program with one class changed at a time, as long as that makes it cheaper.
    fn improved(&self, mut best: Program, costs: &mut Costs, network: Network) -> Program {
        let limit = costs.known.len() + LOWERED;
        for _ in 0..ROUNDS {
            let mut changed = false;
            for class in self.order(&best.choice).unwrap_or_default() {
                for term in 0..self.classes[class].terms.len() {
                    if term == best.choice[class] || costs.known.len() >= limit {
                        continue;
                    }
                    let mut choice = best.choice.clone();
                    choice[class] = term;
                    if let Some(cost) = costs.of(self, &choice)
                        && cost.price(network) < best.cost.price(network)
                    {
                        best = Program { choice, cost };
                        changed = true;
                    }
                }
            }
            if !changed {
                break;
            }
        }
        best
    }

    /// Sets of the rules that made terms.
    fn sets_of_rules(&self) -> Vec<BTreeSet<usize>> {
        let rules: BTreeSet<usize> = self.classes.iter().flat_map(|c| c.terms.iter().filter_map(|t| t.rule)).collect();
        let rules: Vec<usize> = rules.into_iter().collect();
        if rules.len() > COMBINED {
            let single = rules.iter().map(|&rule| BTreeSet::from([rule]));
            return single.chain([rules.iter().copied().collect()]).collect();
        }
        let chosen =
            |bits: usize| rules.iter().enumerate().filter(move |(i, _)| bits >> i & 1 == 1).map(|(_, &rule)| rule);
        (1..1usize << rules.len()).map(|bits| chosen(bits).collect()).collect()
    }
}
