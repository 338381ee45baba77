//! Roles to parties, so that the load on links is even.
//!
//! The roles of a protocol send different amounts: logical party `j` of an op with rotation `r` is party
//! `(j + r) mod 3`. A sum is computed term by term where its terms are needed, so all ops that make or use one sum have
//! one rotation. Clusters of such ops take turns. Ops that name a party (input, embedding, reveal) stay unrotated.
//! Which party plays which role says nothing about any value.

use ombra_ir::module::{Module, Stage};
use ombra_ir::op::Op;
use ombra_ir::settings::rep3::is_interactive;

/// How roles are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// No rotation: the last role can run ahead, which shortens chains of messages.
    Fixed,
    /// Clusters take turns: links carry equal load.
    Turns,
}

/// Assigns rotations; the module is at stage `scheduled` afterwards.
pub fn assign_rotations(module: &mut Module, spread: Spread) {
    let protocol = module.setting.protocol();
    let n = module.ops.len();
    let mut parent: Vec<usize> = (0..n).collect();
    for i in 0..n {
        for a in module.ops[i].args.clone() {
            if module.ty(a).sharing.is_sum() {
                let (x, y) = (root(&mut parent, a.index()), root(&mut parent, i));
                parent[x.max(y)] = x.min(y);
            }
        }
    }
    let mut rotation: Vec<Option<u8>> = vec![None; n];
    let mut turn = 0u8;
    for i in 0..n {
        let node = &module.ops[i];
        let sum = node.ty.sharing.is_sum();
        let named = matches!(node.op, Op::Input { .. } | Op::Embed | Op::Reveal { .. });
        let rotates = sum || is_interactive(&node.op);
        if spread == Spread::Fixed || protocol.rotations < 2 || named || !rotates {
            continue;
        }
        let r = root(&mut parent, i);
        let rot = *rotation[r].get_or_insert_with(|| {
            turn = (turn + 1) % protocol.rotations;
            turn
        });
        module.ops[i].rot = rot;
    }
    module.stage = Stage::Scheduled;
}

fn root(parent: &mut [usize], mut i: usize) -> usize {
    while parent[i] != i {
        parent[i] = parent[parent[i]];
        i = parent[i];
    }
    i
}
