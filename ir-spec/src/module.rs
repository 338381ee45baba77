//! The MPC module: a program for parties, with symbolic sizes.

use crate::diag::{Diagnostic, Result};
use crate::dim::{Dim, Dims, Sym};
use crate::op::Op;
use crate::plain;
pub use crate::settings::Setting;
use crate::ty::Ty;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A party of a setting, whose protocol says who takes part. Of two parties the earlier one opens the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Party {
    /// Holds the prompt.
    Client,
    /// Holds the private weights.
    Server,
    /// Holds nothing of its own, and computes with client and server.
    Helper,
    /// Holds nothing of its own, and deals correlations to client and server.
    Dealer,
}

impl Party {
    /// All parties there are. A setting has a client, a server and one of the others.
    pub const ALL: [Party; 4] = [Party::Client, Party::Server, Party::Helper, Party::Dealer];

    /// Its number among the parties of its setting.
    pub const fn index(self) -> usize {
        match self {
            Party::Client => 0,
            Party::Server => 1,
            Party::Helper | Party::Dealer => 2,
        }
    }

    /// Whether it is the third party of its setting, beside client and server.
    pub const fn is_third(self) -> bool {
        matches!(self, Party::Helper | Party::Dealer)
    }

    /// Name on the command line, in files and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Party::Client => "client",
            Party::Server => "server",
            Party::Helper => "helper",
            Party::Dealer => "dealer",
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Party {
    type Err = Diagnostic;

    fn from_str(text: &str) -> Result<Self> {
        Party::ALL.into_iter().find(|party| party.name() == text).ok_or_else(|| {
            Diagnostic::input("E0711", format!("unknown party `{}`", text.escape_debug()))
                .note("expected client, server, helper or dealer")
        })
    }
}

/// How far lowering has gone; every stage has its own set of legal ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Fixed point, with composite ops.
    Lowered,
    /// Without composite ops.
    Expanded,
    /// With rotations assigned.
    Scheduled,
}

impl Stage {
    /// Name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Lowered => "lowered",
            Stage::Expanded => "expanded",
            Stage::Scheduled => "scheduled",
        }
    }
}

/// Index of an op, and of its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id(pub u32);

impl Id {
    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where an op comes from in the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Name of the ONNX node.
    pub node: String,
    /// Index of the decoder layer, where names show one.
    pub layer: Option<u32>,
    /// The composite op it was expanded from, or the role it plays, such as `softmax`; empty otherwise.
    pub kind: String,
}

/// One op.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Operands, all earlier in the module.
    pub args: Vec<Id>,
    /// Type of the result. For `reveal` and `set_state` the type of what is revealed or kept.
    pub ty: Ty,
    /// Where it comes from.
    pub origin: Origin,
    /// Rotation of roles: logical party `j` is party `(j + rot) mod 3`. Zero before scheduling.
    pub rot: u8,
}

/// Something that a run is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputSlot {
    /// Name of the ONNX value: a graph input or a value that the client's plaintext region computes.
    pub name: String,
    /// Element type and sizes as the client computes it.
    pub dtype: plain::DType,
    /// Sizes as the client computes it.
    pub shape: Vec<Dim>,
}

/// State that stays in shares between the steps of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateSlot {
    /// Name of the ONNX input that holds it before a step.
    pub input: String,
    /// Name of the ONNX output that holds it after a step.
    pub output: String,
    /// Sizes before a step.
    pub shape: Vec<Dim>,
}

/// What the client learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputKind {
    /// The id of the next token.
    NextToken,
    /// A float tensor.
    Tensor,
    /// Integers, such as the index of the maximum score.
    Index,
    /// One bit: whether a range that the plan assumes was left in the step, so that its other results are void.
    Guard,
}

/// A declared output: nothing else may be revealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSlot {
    /// Name of the ONNX output it stands for.
    pub name: String,
    /// What it is.
    pub kind: OutputKind,
    /// Who learns it.
    pub to: Party,
}

/// A size that is the number of true entries of a public mask broadcast to a shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The size it defines.
    pub sym: Sym,
    /// The mask: the index of an output of the public program.
    pub mask: u32,
    /// The shape it is broadcast to.
    pub shape: Vec<Dim>,
}

/// A program for the parties of a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Module {
    /// Name of the model.
    pub name: String,
    /// Who takes part.
    pub setting: Setting,
    /// How far lowering has gone.
    pub stage: Stage,
    /// Symbols and their maxima.
    pub dims: Dims,
    /// Sizes that masks define.
    pub counts: Vec<Count>,
    /// What everybody computes in the clear before a step: masks, rotary tables, positions.
    pub public: plain::Program,
    /// What a run is given.
    pub inputs: Vec<InputSlot>,
    /// What stays between steps.
    pub states: Vec<StateSlot>,
    /// What the client learns.
    pub outputs: Vec<OutputSlot>,
    /// The ops in order.
    pub ops: Vec<Node>,
}

impl Module {
    /// A module without declarations and ops.
    pub fn empty(name: String, setting: Setting, stage: Stage, dims: Dims) -> Module {
        Module {
            name,
            setting,
            stage,
            dims,
            counts: Vec::new(),
            public: plain::Program::default(),
            inputs: Vec::new(),
            states: Vec::new(),
            outputs: Vec::new(),
            ops: Vec::new(),
        }
    }

    /// The module's declarations alone.
    pub fn without_ops(&self) -> Module {
        Module {
            name: self.name.clone(),
            setting: self.setting,
            stage: self.stage,
            dims: self.dims.clone(),
            counts: self.counts.clone(),
            public: self.public.clone(),
            inputs: self.inputs.clone(),
            states: self.states.clone(),
            outputs: self.outputs.clone(),
            ops: Vec::new(),
        }
    }

    /// The op with an id.
    pub fn node(&self, id: Id) -> &Node {
        &self.ops[id.index()]
    }

    /// The type of a value.
    pub fn ty(&self, id: Id) -> &Ty {
        &self.ops[id.index()].ty
    }
}
