//! The language of the e-graph: operators of the typed graph over leaves, with what is known of every class.
//!
//! Operators are interned, since their attributes have no order and no hash. Leaves are numbered: what they are called
//! is no part of a term, so that equal layers give equal e-graphs.

use crate::graph::{Op, Owner, TensorOp, infer};
use egg::{DidMerge, Id, Language};
use ombra_ir::Dim;
use ombra_ir::plain::{DType, Type};
use std::collections::BTreeMap;

/// What a term is at its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Head {
    /// A value from outside the region, by its place among the region's leaves.
    Leaf(u32),
    /// An operator, by its place in [`Analysis::ops`].
    Op(u32),
}

/// A term over classes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expr {
    /// Its root.
    pub head: Head,
    /// Operands by slot.
    pub args: Vec<Id>,
}

impl Language for Expr {
    type Discriminant = Head;

    fn discriminant(&self) -> Head {
        self.head
    }

    fn matches(&self, other: &Self) -> bool {
        self.head == other.head && self.args.len() == other.args.len()
    }

    fn children(&self) -> &[Id] {
        &self.args
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.args
    }
}

/// What is known of every value of a class.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Element type and shape, equal for all terms of the class.
    pub ty: Type,
    /// The least owner that a term of the class has.
    pub owner: Owner,
    /// Whether a term depends on weights and constants alone, and on no size.
    pub fixed: bool,
    /// The number that the value is full of.
    pub full: Option<f32>,
    /// The first node of the region that the class stands for or was made for.
    pub origin: Option<u32>,
    /// Whether it is the private embedding table that a head may be tied to, or has its form turned.
    pub tied: bool,
}

/// Interned operators, and facts of leaves.
#[derive(Clone, Debug, Default)]
pub struct Analysis {
    /// Operators by number.
    pub ops: Vec<Op>,
    numbers: BTreeMap<String, u32>,
    /// Facts of leaves by number.
    pub leaves: Vec<Facts>,
    /// What went wrong: an ill-typed term, or a class of two types.
    pub clash: Option<String>,
}

impl Analysis {
    /// The number of an operator.
    pub fn intern(&mut self, op: &Op) -> u32 {
        // The debug form of an operator names all its attributes.
        let key = format!("{op:?}");
        if let Some(&n) = self.numbers.get(&key) {
            return n;
        }
        let n = self.ops.len() as u32;
        self.ops.push(op.clone());
        self.numbers.insert(key, n);
        n
    }

    /// The operator of a head; `None` for a leaf.
    pub fn op(&self, head: Head) -> Option<&Op> {
        match head {
            Head::Leaf(_) => None,
            Head::Op(n) => self.ops.get(n as usize),
        }
    }
}

/// An e-graph of a region.
pub type EGraph = egg::EGraph<Expr, Analysis>;

/// Facts of `op` on operands of known facts; `None` when it is ill-typed.
pub fn facts_of(op: &Op, args: &[&Facts]) -> Option<Facts> {
    let ty = infer::infer(op, &args.iter().map(|f| &f.ty).collect::<Vec<_>>()).ok()?;
    let constant = ty.shape.iter().all(|d| d.as_constant().is_some());
    let fixed = constant && args.iter().all(|f| f.fixed) && !is_sized(op);
    let owner = match args.iter().fold(Owner::Public, |owner, f| owner.join(f.owner)) {
        Owner::Server if !fixed => Owner::Secret,
        // The client computes what has a name in its model, and nothing else.
        Owner::Client => Owner::Secret,
        owner => owner,
    };
    let full = match op {
        Op::Tensor(TensorOp::Constant(t)) => {
            let values = t.as_f32().ok();
            values.and_then(|v| v.first().copied().filter(|first| v.iter().all(|x| x == first)))
        }
        _ => None,
    };
    Some(Facts { ty, owner, fixed, full, origin: None, tied: false })
}

/// Whether a value is another one at other sizes or inputs, whatever its operands are.
fn is_sized(op: &Op) -> bool {
    use TensorOp as T;
    matches!(op, Op::Input { .. } | Op::Tensor(T::Sizes { .. } | T::Iota { .. } | T::Range))
}

impl egg::Analysis<Expr> for Analysis {
    type Data = Facts;

    fn make(egraph: &mut EGraph, node: &Expr, _: Id) -> Facts {
        let made = match node.head {
            Head::Leaf(n) => egraph.analysis.leaves.get(n as usize).cloned(),
            Head::Op(_) => {
                let args: Vec<&Facts> = node.args.iter().map(|&a| &egraph[a].data).collect();
                egraph.analysis.op(node.head).and_then(|op| facts_of(op, &args))
            }
        };
        made.unwrap_or_else(|| {
            egraph.analysis.clash.get_or_insert_with(|| format!("an ill-typed term {node:?}"));
            let ty = Type::new(DType::F32, Vec::<Dim>::new());
            Facts { ty, owner: Owner::Secret, fixed: false, full: None, origin: None, tied: false }
        })
    }

    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        if a.ty != b.ty {
            self.clash.get_or_insert_with(|| format!("one class of {:?} and {:?}", a.ty, b.ty));
        }
        let merged = Facts {
            ty: a.ty.clone(),
            owner: least(a.owner, b.owner),
            fixed: a.fixed || b.fixed,
            full: a.full.or(b.full),
            origin: match (a.origin, b.origin) {
                (Some(x), Some(y)) => Some(x.min(y)),
                (x, y) => x.or(y),
            },
            tied: a.tied || b.tied,
        };
        let did = DidMerge(merged != *a, merged != b);
        *a = merged;
        did
    }
}

/// The lower of two owners of one value: whoever can compute it in one way knows it.
fn least(a: Owner, b: Owner) -> Owner {
    match a.join(b) {
        join if join == a => b,
        join if join == b => a,
        _ => a.min(b),
    }
}

/// What a rule puts in a class: a term over classes.
#[derive(Clone, Debug)]
pub enum Tree {
    /// A class that is there.
    Class(Id),
    /// An operator on terms.
    Node(Op, Vec<Tree>),
}

impl Tree {
    /// An operator on one term.
    pub fn unary(op: Op, x: impl Into<Tree>) -> Tree {
        Tree::Node(op, vec![x.into()])
    }

    /// An operator on two terms.
    pub fn binary(op: Op, a: impl Into<Tree>, b: impl Into<Tree>) -> Tree {
        Tree::Node(op, vec![a.into(), b.into()])
    }

    /// A constant scalar.
    pub fn scalar(k: f32) -> Tree {
        Tree::Node(Op::Tensor(TensorOp::Constant(ombra_ir::plain::Tensor::scalar_f32(k))), Vec::new())
    }
}

impl From<Id> for Tree {
    fn from(id: Id) -> Tree {
        Tree::Class(id)
    }
}

/// The facts of a term; `None` when it is ill-typed, or lowering has no way to compute it: of the client's values, it
/// multiplies those that have a name in the model by public matrices, and public values come from the operators of
/// public programs.
pub fn tree_facts(egraph: &EGraph, tree: &Tree) -> Option<Facts> {
    match tree {
        Tree::Class(id) => Some(egraph[*id].data.clone()),
        Tree::Node(op, args) => {
            let args = args.iter().map(|a| tree_facts(egraph, a)).collect::<Option<Vec<_>>>()?;
            let facts = facts_of(op, &args.iter().collect::<Vec<_>>())?;
            let clients = args.iter().all(|f| matches!(f.owner, Owner::Public | Owner::Client))
                && args.iter().any(|f| f.owner == Owner::Client);
            let odd = facts.owner == Owner::Public && !facts.fixed && op.tensor().is_none();
            (!odd && (!clients || *op == Op::MATMUL)).then_some(facts)
        }
    }
}

/// Adds a term whose facts are known to be sound; new classes get `origin`.
pub fn add_tree(egraph: &mut EGraph, tree: &Tree, origin: Option<u32>, made: &mut Vec<Expr>) -> Id {
    match tree {
        Tree::Class(id) => egraph.find(*id),
        Tree::Node(op, args) => {
            let args = args.iter().map(|a| add_tree(egraph, a, origin, made)).collect();
            let head = Head::Op(egraph.analysis.intern(op));
            let expr = Expr { head, args };
            let id = egraph.add(expr.clone());
            made.push(expr);
            if egraph[id].data.origin.is_none() {
                egraph[id].data.origin = origin;
            }
            id
        }
    }
}
