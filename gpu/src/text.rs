//! The programs of the device, in WGSL: `c = x b` or `c += x b` on Z_2^64, with `b` given by rows or with its axes
//! exchanged.
//!
//! Two integer forms: the device's own 64-bit integers, or two limbs of 32 bits, low limb first; both have the same bytes
//! in memory. Two shapes of work: square tiles in workgroup memory for many rows, and for few rows one pass over `b` that
//! reads every element once and sums over lanes at the end. Indices and branches depend on sizes alone.

use crate::Form;

/// Rows and columns of a tile.
pub const TILE: u32 = 64;
/// Steps of the inner dimension in a tile.
const STEPS: u32 = 16;
/// Elements from one step to the next in workgroup memory: odd, so that columns do not meet in one bank.
const LINE: u32 = TILE + 1;
/// Rows that the program for few rows takes at once.
pub const FEW: u32 = 4;
/// Invocations of a workgroup.
pub const INVOCATIONS: u32 = 256;
/// Bytes of workgroup memory that a program takes at most.
pub const WORKGROUP_BYTES: u32 = 2 * STEPS * LINE * 8;

/// Columns of a workgroup of the program for few rows.
pub const fn few_columns(trans_b: bool) -> u32 {
    // Neighbours read neighbouring elements: along columns, or along the inner dimension.
    if trans_b { 8 } else { 32 }
}

/// What both programs begin with: the element type and its arithmetic, and the bindings.
fn head(form: Form) -> String {
    let arithmetic = match form {
        Form::Wide => {
            "
alias W = u64;
fn zero() -> W { return 0lu; }
fn add(x: W, y: W) -> W { return x + y; }
fn mad(s: W, x: W, y: W) -> W { return s + x * y; }
"
        }
        Form::Limbs => {
            "
alias W = vec2<u32>;
fn zero() -> W { return vec2<u32>(0u, 0u); }
fn add(x: W, y: W) -> W {
    let low = x.x + y.x;
    return vec2<u32>(low, x.y + y.y + select(0u, 1u, low < x.x));
}
fn mad(s: W, x: W, y: W) -> W {
    let x0 = x.x & 0xffffu; let x1 = x.x >> 16u;
    let y0 = y.x & 0xffffu; let y1 = y.x >> 16u;
    let p00 = x0 * y0; let p01 = x0 * y1; let p10 = x1 * y0; let p11 = x1 * y1;
    let middle = (p00 >> 16u) + (p01 & 0xffffu) + (p10 & 0xffffu);
    let high = p11 + (p01 >> 16u) + (p10 >> 16u) + (middle >> 16u) + x.x * y.y + x.y * y.x;
    return add(s, vec2<u32>((middle << 16u) | (p00 & 0xffffu), high));
}
"
        }
    };
    let bindings = "
struct Sizes { m: u32, k: u32, n: u32, x_line: u32, x_at: u32, b_line: u32, c_line: u32, c_at: u32, sums: u32 }
@group(0) @binding(0) var<storage, read> x: array<W>;
@group(0) @binding(1) var<storage, read> b: array<W>;
@group(0) @binding(2) var<storage, read_write> c: array<W>;
@group(0) @binding(3) var<uniform> s: Sizes;
fn put(i: u32, j: u32, sum: W) {
    if (i < s.m && j < s.n) {
        let at = i * s.c_line + s.c_at + j;
        if (s.sums != 0u) { c[at] = add(c[at], sum); } else { c[at] = sum; }
    }
}
";
    format!("{arithmetic}{bindings}")
}

/// Element (p, j) of the right operand.
fn right(trans_b: bool, p: &str, j: &str) -> String {
    if trans_b { format!("b[({j}) * s.b_line + ({p})]") } else { format!("b[({p}) * s.b_line + ({j})]") }
}

/// The program for many rows: a workgroup makes a tile, an invocation every 16th row and column of it.
pub fn tiles(form: Form, trans_b: bool) -> String {
    let mut text = head(form);
    let words = STEPS * LINE;
    text += &format!("var<workgroup> tx: array<W, {words}>;\nvar<workgroup> tb: array<W, {words}>;\n");
    text += &format!("@compute @workgroup_size({INVOCATIONS})\n");
    text += "fn main(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {\n";
    text += &format!("let i0 = g.y * {TILE}u; let j0 = g.x * {TILE}u; let li = l / 16u; let lj = l % 16u;\n");
    let each = || (0..4).flat_map(|r| (0..4).map(move |q| (r, q)));
    each().for_each(|(r, q)| text += &format!("var c{r}{q} = zero();\n"));
    text += &format!("for (var t = 0u; t < s.k; t += {STEPS}u) {{\n");
    for part in 0..4 {
        let at = part * INVOCATIONS;
        text += &format!("{{ let e = l + {at}u; let i = e / {STEPS}u; let p = e % {STEPS}u; var v = zero();\n");
        text += "if (i0 + i < s.m && t + p < s.k) { v = x[(i0 + i) * s.x_line + s.x_at + t + p]; }\n";
        text += &format!("tx[p * {LINE}u + i] = v; }}\n");
        let (j, p) = if trans_b {
            (format!("e / {STEPS}u"), format!("e % {STEPS}u"))
        } else {
            (format!("e % {TILE}u"), format!("e / {TILE}u"))
        };
        let element = right(trans_b, "t + p", "j0 + j");
        text += &format!("{{ let e = l + {at}u; let j = {j}; let p = {p}; var v = zero();\n");
        text += &format!("if (j0 + j < s.n && t + p < s.k) {{ v = {element}; }}\n");
        text += &format!("tb[p * {LINE}u + j] = v; }}\n");
    }
    text += "workgroupBarrier();\n";
    text += &format!("for (var p = 0u; p < {STEPS}u; p++) {{ let at = p * {LINE}u;\n");
    (0..4).for_each(|r| {
        text += &format!("let x{r} = tx[at + li + {}u]; let b{r} = tb[at + lj + {}u];\n", 16 * r, 16 * r)
    });
    each().for_each(|(r, q)| text += &format!("c{r}{q} = mad(c{r}{q}, x{r}, b{q});\n"));
    text += "}\nworkgroupBarrier();\n}\n";
    each().for_each(|(r, q)| text += &format!("put(i0 + li + {}u, j0 + lj + {}u, c{r}{q});\n", 16 * r, 16 * q));
    text + "}\n"
}

/// The program for few rows: a workgroup makes [`few_columns`] columns of [`FEW`] rows, whose sums are split over lanes.
pub fn few(form: Form, trans_b: bool) -> String {
    let columns = few_columns(trans_b);
    let lanes = INVOCATIONS / columns;
    let mut text = head(form);
    text += &format!("var<workgroup> sums: array<W, {}>;\n", FEW * INVOCATIONS);
    text += &format!("@compute @workgroup_size({INVOCATIONS})\n");
    text += "fn main(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {\n";
    let (column, lane) = if trans_b {
        (format!("l / {lanes}u"), format!("l % {lanes}u"))
    } else {
        (format!("l % {columns}u"), format!("l / {columns}u"))
    };
    text += &format!("let i0 = g.y * {FEW}u; let j = g.x * {columns}u + {column};\n");
    (0..FEW).for_each(|r| {
        text += &format!("var c{r} = zero(); let x{r} = min(i0 + {r}u, s.m - 1u) * s.x_line + s.x_at;\n")
    });
    text += &format!("if (j < s.n) {{ var p = {lane};\n");
    // Several elements are under way at once.
    let unrolled = 4;
    text += &format!("for (; p + {}u < s.k; p += {}u) {{\n", (unrolled - 1) * lanes, unrolled * lanes);
    for u in 0..unrolled {
        text += &format!("let b{u} = {};\n", right(trans_b, &format!("p + {}u", u * lanes), "j"));
    }
    for u in 0..unrolled {
        (0..FEW).for_each(|r| text += &format!("c{r} = mad(c{r}, x[x{r} + p + {}u], b{u});\n", u * lanes));
    }
    text += &format!("}}\nfor (; p < s.k; p += {lanes}u) {{ let b0 = {};\n", right(trans_b, "p", "j"));
    (0..FEW).for_each(|r| text += &format!("c{r} = mad(c{r}, x[x{r} + p], b0);\n"));
    text += "}\n}\n";
    (0..FEW).for_each(|r| text += &format!("sums[{}u + l] = c{r};\n", r * INVOCATIONS));
    text += "workgroupBarrier();\n";
    text +=
        &format!("if (l < {}u) {{ let r = l / {columns}u; let q = l % {columns}u; var sum = zero();\n", FEW * columns);
    let place = if trans_b { format!("q * {lanes}u + i") } else { format!("i * {columns}u + q") };
    text += &format!("for (var i = 0u; i < {lanes}u; i++) {{ sum = add(sum, sums[r * {INVOCATIONS}u + {place}]); }}\n");
    text += &format!("put(i0 + r, g.x * {columns}u + q, sum);\n}}\n}}\n");
    text
}
