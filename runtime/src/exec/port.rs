//! What a kernel's messages pass through: one outbox and one inbox for each peer.

use std::cell::{RefCell, RefMut};

use ombra_ir::{Diagnostic, Result};

/// Bytes on their way to or from a kernel. The index is the peer's party number.
#[derive(Default)]
pub(crate) struct Port {
    outbox: [RefCell<Vec<u8>>; 3],
    inbox: [RefCell<Inbox>; 3],
}

#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    taken: usize,
}

impl Port {
    /// What goes to party `to` in the present round.
    pub(crate) fn outbox(&self, to: usize) -> RefMut<'_, Vec<u8>> {
        self.outbox[to].borrow_mut()
    }

    /// The next `len` bytes that party `from` sent in the round that just ended, read by `read`. E0802 when there are fewer.
    pub(crate) fn take_with<T>(&self, from: usize, len: usize, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let mut inbox = self.inbox[from].borrow_mut();
        let start = inbox.taken;
        let Some(bytes) = inbox.bytes.get(start..).and_then(|rest| rest.get(..len)) else {
            let found = inbox.bytes.len() - start;
            return Err(Diagnostic::peer("E0802", "a message of an op is too short")
                .note(format!("expected  {len} bytes"))
                .note(format!("found     {found} bytes")));
        };
        let value = read(bytes);
        inbox.taken = start + len;
        Ok(value)
    }

    /// What the kernel has sent to party `to` since the last call.
    pub(crate) fn drain(&self, to: usize) -> Vec<u8> {
        self.outbox[to].take()
    }

    /// Puts what party `from` sent in this round before the kernel.
    pub(crate) fn deliver(&self, from: usize, bytes: Vec<u8>) {
        *self.inbox[from].borrow_mut() = Inbox { bytes, taken: 0 };
    }

    /// Bytes that the kernel has not taken.
    pub(crate) fn untaken(&self) -> usize {
        self.inbox.iter().map(|inbox| inbox.borrow()).map(|inbox| inbox.bytes.len() - inbox.taken).sum()
    }
}
