//! When ops run: whoever deals is ahead, and what it sends is there in time.

use ombra_ir::bind::bind;
use ombra_ir::module::{Id, Module};
use ombra_ir::schedule::{Schedule, party, schedule};

/// A square of an input, divided, its signs and these as ring elements, with rotations.
fn chain(rots: [u8; 4]) -> Module {
    let [square, divided, signs, ring] = rots;
    let text = format!(
        r#"module "chain" stage(scheduled) setting(3pc) {{
  input "x" : f32[8]
  output "y" : tensor to client
  %0 = input {{slot = 0}} : ring64.16[8] shared <20
  %1 = mul %0, %0 : ring64.32[8] sum3 <40 rot {square}
  %2 = truncate %1 {{by = 16, bits = 64}} : ring64.16[8] shared <25 rot {divided}
  %3 = msb %2 {{width = 30, drop = 0}} : bit[8] shared rot {signs}
  %4 = bit_to_ring %3 {{bits = 64}} : ring64.0[8] shared <1 rot {ring}
  %5 = reveal %4 {{slot = 0}} : ring64.0[8] shared <1
}}
"#
    )
    .replace(" rot 0\n", "\n");
    ombra_ir::text::parse(&text).unwrap()
}

fn scheduled(module: &Module) -> Schedule {
    schedule(module, &bind(module, &[], &[]).unwrap()).unwrap()
}

/// With fixed roles role 2 has its part of everything before the others: it never makes them wait.
#[test]
fn role_2_is_ahead() {
    let module = chain([0; 4]);
    let found = scheduled(&module);
    let rounds: Vec<u32> = found.traffic.iter().map(|traffic| traffic.rounds).collect();
    let signs = rounds[3];
    assert_eq!(rounds, [1, 0, 2, signs, 1, 1]);
    assert_eq!(found.ticks, 5 + signs);
    for (i, (start, ready)) in found.start.iter().zip(&found.ready).enumerate() {
        assert!(ready[2] < ready[0] && ready[0] == ready[1], "op {i} is ready at {ready:?}");
        let lead = found.traffic[i].dealt.map_or(0, |dealt| dealt.lead);
        assert!(start[2] + lead <= start[0], "op {i} starts at {start:?}");
    }
    // It deals no earlier than it must.
    assert_eq!([found.start[3], found.start[4]], [[3, 3, 2], [3 + signs, 3 + signs, 2 + signs]]);
}

/// In every rotation, what is dealt leaves after its dealer has its operands and before the others need it, and every
/// byte of an op is in a frame.
#[test]
fn what_is_dealt_is_there_in_time() {
    for rots in [[0, 0, 0, 0], [1, 1, 2, 0], [2, 2, 2, 1], [1, 1, 0, 2]] {
        let module = chain(rots);
        let found = scheduled(&module);
        for (i, node) in module.ops.iter().enumerate() {
            let start = found.start[i];
            for arg in &node.args {
                assert!((0..3).all(|p| found.ready[arg.index()][p] <= start[p]), "{rots:?}, op {i}");
            }
            if let Some(dealt) = found.traffic[i].dealt {
                let dealer = party(2, node.rot);
                assert!((0..3).filter(|&p| p != dealer).all(|p| start[dealer] + dealt.lead <= start[p]));
                assert_eq!(found.ready[i][dealer], start[dealer]);
            }
        }
        let in_frames: u64 = found.frames(&module).iter().flatten().flatten().sum();
        let of_ops: u64 = (0..module.ops.len()).flat_map(|i| found.op_bytes(&module, Id(i as u32))).sum();
        assert_eq!(in_frames, of_ops);
        assert_eq!(found.cost(&module).bytes.iter().sum::<u64>(), of_ops);
    }
}
