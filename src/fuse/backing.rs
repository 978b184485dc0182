//! The one unsafe call of fuser: answering an open with a backing id that some worker registered.
#![expect(unsafe_code, reason = "fuser cannot know that a raw id is valid, and says so")]

use fuser::{FileHandle, FopenFlags, ReplyOpen};

/// Answers an open in passthrough mode with an id that `handles` keeps registered while the file is open.
pub(super) fn reply_passthrough(reply: ReplyOpen, handle: FileHandle, flags: FopenFlags, id: u32) {
    // SAFETY: the id is registered with this connection and recorded in its session; it is given up only after the
    // kernel has released the last handle of the inode, and this wrapper gives it back before it is dropped.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(handle, flags, &backing);
    // Dropping it would close the id.
    let _ = backing.into_raw();
}
