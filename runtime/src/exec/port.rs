//! What a kernel's messages pass through: one outbox and one inbox for each peer.

use std::cell::{RefCell, RefMut};
use std::ops::Range;
use std::rc::Rc;

use ombra_ir::{Diagnostic, Result};

/// Bytes on their way to or from a kernel. The index is the peer's party number.
#[derive(Default)]
pub(crate) struct Port {
    outbox: [RefCell<Vec<u8>>; 3],
    inbox: [RefCell<Inbox>; 3],
}

/// One op's part of a frame, which ops share.
#[derive(Clone, Default)]
pub(crate) struct Part {
    frame: Option<Rc<Vec<u8>>>,
    range: Range<usize>,
}

impl Part {
    /// The bytes of `range`, as far as the frame has them.
    pub(crate) fn new(frame: &Rc<Vec<u8>>, range: Range<usize>) -> Self {
        Part { frame: Some(Rc::clone(frame)), range }
    }

    fn bytes(&self) -> &[u8] {
        self.frame.as_ref().and_then(|frame| frame.get(self.range.clone())).unwrap_or(&[])
    }
}

impl From<Vec<u8>> for Part {
    fn from(bytes: Vec<u8>) -> Self {
        Part { range: 0..bytes.len(), frame: Some(Rc::new(bytes)) }
    }
}

#[derive(Default)]
struct Inbox {
    part: Part,
    taken: usize,
}

impl Inbox {
    /// What was not taken.
    fn rest(&self) -> &[u8] {
        self.part.bytes().get(self.taken..).unwrap_or(&[])
    }
}

impl Port {
    /// What goes to party `to` in the present round.
    pub(crate) fn outbox(&self, to: usize) -> RefMut<'_, Vec<u8>> {
        self.outbox[to].borrow_mut()
    }

    /// The next `len` bytes that party `from` sent in the round that just ended, read by `read`. E0802 when there are fewer.
    pub(crate) fn take_with<T>(&self, from: usize, len: usize, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let mut inbox = self.inbox[from].borrow_mut();
        let Some(bytes) = inbox.rest().get(..len) else {
            let found = inbox.rest().len();
            return Err(Diagnostic::peer("E0802", "a message of an op is too short")
                .note(format!("expected  {len} bytes"))
                .note(format!("found     {found} bytes")));
        };
        let value = read(bytes);
        inbox.taken += len;
        Ok(value)
    }

    /// What the kernel has sent to party `to` since the last call.
    pub(crate) fn drain(&self, to: usize) -> Vec<u8> {
        self.outbox[to].take()
    }

    /// Makes room for what goes to party `to` in a round, where there is as much.
    pub(crate) fn reserve(&self, to: usize, bytes: usize) {
        drop(self.outbox(to).try_reserve_exact(bytes));
    }

    /// Puts what party `from` sent in this round before the kernel.
    pub(crate) fn deliver(&self, from: usize, part: Part) {
        *self.inbox[from].borrow_mut() = Inbox { part, taken: 0 };
    }

    /// Bytes of party `from` that the kernel has not taken.
    pub(crate) fn untaken(&self, from: usize) -> usize {
        self.inbox[from].borrow().rest().len()
    }
}
