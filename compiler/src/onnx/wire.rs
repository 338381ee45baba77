//! A walk over the bytes of an ONNX file before they are parsed.
//!
//! The protobuf parser trusts its input in three ways: it skips groups (a wire type that ONNX does not use) with one
//! stack frame for each level, it reserves memory for announced lengths before it compares them with what is there, and
//! it keeps a structure of some hundred bytes for a field that takes two bytes in the file. This walk reads the same
//! bytes with an explicit stack, follows the messages of `onnx.proto`, and refuses what would not end well.

use ombra_ir::{Diagnostic, Result};

/// Messages inside messages: a graph inside an attribute of a node of a graph takes three of them.
const MAX_DEPTH: usize = 64;
/// Messages in one file.
const MAX_MESSAGES: usize = 1 << 22;
/// Fields in one file, a packed list being one of them.
const MAX_FIELDS: usize = 1 << 24;

/// The messages of `onnx.proto`, as far as they hold other messages.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Training,
    Function,
    Graph,
    Annotation,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Value,
    Type,
    Element,
    TensorType,
    Shape,
    Leaf,
}

/// The message that `field` of `message` holds, if it holds one.
fn child(message: Message, field: u64) -> Option<Message> {
    use Message::*;
    Some(match (message, field) {
        (Model, 7) | (Training, 1 | 2) | (Attribute, 6 | 11) => Graph,
        (Model, 20) => Training,
        (Model, 25) => Function,
        (Graph, 1) | (Function, 7) => Node,
        (Node, 5) | (Function, 11) => Attribute,
        (Graph, 5) | (Attribute, 5 | 10) | (Sparse, 1 | 2) => Tensor,
        (Graph, 15) | (Attribute, 22 | 23) => Sparse,
        (Graph, 11..=13) | (Function, 12) => Value,
        (Graph, 14) => Annotation,
        (Value, 2) | (Attribute, 14 | 15) | (Element, 1 | 2) => Type,
        (Type, 1 | 8) => TensorType,
        (Type, 4 | 5 | 9) => Element,
        (TensorType, 2) => Shape,
        (Model, 8 | 14)
        | (Training, 3 | 4)
        | (Function, 9 | 14)
        | (Graph, 16)
        | (Annotation, 2)
        | (Node, 9)
        | (Tensor, 3 | 13 | 16)
        | (Value, 4)
        | (Shape, 1) => Leaf,
        _ => return None,
    })
}

/// Checks that `bytes` are the fields of a `ModelProto`: every length inside its message, no groups, bounded nesting and
/// bounded numbers of messages and fields.
///
/// # Errors
/// `E0102` names the byte at which the file stops making sense.
pub(crate) fn check(bytes: &[u8]) -> Result<()> {
    let mut open = vec![(Message::Model, bytes.len())];
    let (mut at, mut messages, mut fields) = (0, 0, 0);
    while let Some(&(message, end)) = open.last() {
        if at == end {
            open.pop();
            continue;
        }
        let start = at;
        let tag = varint(bytes, &mut at, end).ok_or_else(|| damaged(start, "a field tag is cut off or too long"))?;
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(damaged(start, format!("more than {MAX_FIELDS} fields")));
        }
        let skip = match tag & 7 {
            0 => {
                varint(bytes, &mut at, end).ok_or_else(|| damaged(start, "an integer is cut off or too long"))?;
                0
            }
            1 => 8,
            2 => varint(bytes, &mut at, end).ok_or_else(|| damaged(start, "a length is cut off or too long"))?,
            5 => 4,
            other => return Err(damaged(start, format!("wire type {other}, which ONNX does not use"))),
        };
        let left = end - at;
        let skip = usize::try_from(skip).ok().filter(|skip| *skip <= left).ok_or_else(|| {
            damaged(start, format!("a field of {skip} bytes where only {left} bytes are left in its message"))
        })?;
        match child(message, tag >> 3) {
            Some(inner) if tag & 7 == 2 => {
                messages += 1;
                if messages > MAX_MESSAGES {
                    return Err(damaged(start, format!("more than {MAX_MESSAGES} messages")));
                }
                if open.len() >= MAX_DEPTH {
                    return Err(damaged(start, format!("messages nested more than {MAX_DEPTH} deep")));
                }
                open.push((inner, at + skip));
            }
            _ => at += skip,
        }
    }
    Ok(())
}

/// The base-128 integer at `*at`, which must end before `end`.
fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        if *at >= end {
            return None;
        }
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The error of this module.
fn damaged(at: usize, what: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::input("E0102", format!("this is not a readable ONNX file: {what}, at byte {at}"))
        .note("the file may be cut short, damaged, a Git LFS pointer or no ONNX file: get it again or export it again")
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn groups_are_refused_instead_of_skipped() {
        let deep = vec![0x23u8; 1 << 20];
        assert!(check(&deep).unwrap_err().message.contains("wire type 3"));
    }

    #[test]
    fn lengths_beyond_the_message_are_refused() {
        let huge = [0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert!(check(&huge).unwrap_err().message.contains("only 0 bytes are left"));
        let inner = [0x3a, 0x02, 0x0a, 0x05, 0, 0, 0, 0, 0];
        assert!(check(&inner).unwrap_err().message.contains("a field of 5 bytes"));
    }

    #[test]
    fn nesting_is_bounded() {
        let mut bytes = Vec::new();
        for level in 0..200 {
            let tag = [0x2a, 0x0a, 0x32][level % 3];
            let mut length = bytes.len();
            let mut outer = vec![tag];
            while length >= 0x80 {
                outer.push((length & 0x7f) as u8 | 0x80);
                length >>= 7;
            }
            outer.push(length as u8);
            outer.extend(&bytes);
            bytes = outer;
        }
        let mut model = vec![0x3a, bytes.len() as u8 & 0x7f | 0x80, (bytes.len() >> 7) as u8];
        model.extend(&bytes);
        assert!(check(&model).unwrap_err().message.contains("nested"));
    }
}
