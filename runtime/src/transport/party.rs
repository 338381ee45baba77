//! The parties of a run and their order.

use std::fmt;
use std::str::FromStr;

use ombra_ir::{Diagnostic, Result};
use serde::{Deserialize, Serialize};

/// A party. The order matters: see [`dials`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Party {
    /// Holds the prompt, learns the result.
    Client,
    /// Holds the private weights.
    Server,
    /// Holds shares only.
    Helper,
}

impl Party {
    /// Every party, in order.
    pub const ALL: [Party; 3] = [Party::Client, Party::Server, Party::Helper];

    /// Position in [`Party::ALL`].
    pub const fn index(self) -> usize {
        match self {
            Party::Client => 0,
            Party::Server => 1,
            Party::Helper => 2,
        }
    }

    /// The name in configurations and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Party::Client => "client",
            Party::Server => "server",
            Party::Helper => "helper",
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
        match text {
            "client" => Ok(Party::Client),
            "server" => Ok(Party::Server),
            "helper" => Ok(Party::Helper),
            "dealer" => Err(Diagnostic::unsupported("E0711", "the party `dealer` is not supported yet")
                .note("expected client, server or helper")),
            _ => Err(Diagnostic::input("E0711", format!("unknown party `{}`", text.escape_debug()))
                .note("expected client, server or helper")),
        }
    }
}

/// Whether `party` opens the connections to `peer`, instead of accepting them: of two parties the earlier one does.
pub fn dials(party: Party, peer: Party) -> bool {
    party < peer
}
