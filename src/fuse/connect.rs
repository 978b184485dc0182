//! Beginning to serve a connection, new or taken over: INIT through a socket pair, then the real device.
//!
//! fuser's session always performs the INIT handshake, which the kernel does once per connection. So the session
//! gets one end of a SEQPACKET pair. The request, fresh from the kernel or from the connection's state, is written
//! into the other end; the reply comes out there and goes to the kernel, or is compared with the one that the kernel
//! has. Then the device takes the place of the session's end, and the session runs.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use fuser::{Config, InitFlags, KernelConfig, SessionACL};
use rustix::event::{PollFd, PollFlags};

use super::session::{Session, SessionError};
use crate::sys::{fuse_device, socket};

/// Reads and readahead that the kernel may have under way; its default of 12 stalls parallel readers.
const MAX_BACKGROUND: u16 = 256;
/// The largest read; also bounds the size of replies.
const MAX_REQUEST: u32 = 1 << 20;
/// The kernel asks at once after the mount; if nothing comes, an earlier worker died with the request.
const INIT_PATIENCE: Duration = Duration::from_secs(5);

/// What the connection was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) resend: bool,
    pub(super) passthrough: bool,
}

/// How INIT is to be answered.
#[derive(Debug, Clone)]
pub(super) enum Negotiation {
    /// With the best that kernel and options allow.
    Fresh {
        /// Ask for requests to be sent again after a take-over.
        resend: bool,
        /// Ask for passthrough.
        passthrough: bool,
    },
    /// Exactly as before.
    Replay(Reply),
}

/// The fields of a `fuse_init_out` that we choose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply {
    flags: InitFlags,
    max_readahead: u32,
    max_background: u16,
    congestion: u16,
    max_write: u32,
    stack_depth: u32,
}

/// Why a connection cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the kernel asked for nothing in {INIT_PATIENCE:?}")]
    Silent,
    #[error("the stored reply to INIT cannot be read")]
    BadReply,
    #[error("this build answers INIT differently than the connection was told")]
    Differs,
    #[error("the kernel cannot send requests again, so a connection cannot be taken over")]
    NoResend,
    #[error("could not {step}")]
    Io {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

impl Reply {
    /// Reads a stored reply: a `fuse_out_header`, then a `fuse_init_out`.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let body = message.get(16..)?;
        let u32_at = |at: usize| body.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let u16_at = |at: usize| body.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
        let low = u64::from(u32_at(12)?);
        let high = u64::from(u32_at(32)?);
        Some(Self {
            flags: InitFlags::from_bits_retain(high << 32 | low),
            max_readahead: u32_at(8)?,
            max_background: u16_at(16)?,
            congestion: u16_at(18)?,
            max_write: u32_at(20)?,
            stack_depth: u32_at(36)?,
        })
    }

    pub(super) fn granted(&self) -> Granted {
        Granted {
            resend: self.flags.contains(InitFlags::FUSE_HAS_RESEND),
            passthrough: self.flags.contains(InitFlags::FUSE_PASSTHROUGH),
        }
    }
}

impl Negotiation {
    /// Whether the kernel drops a listing that it keeps when the time of the directory has changed.
    pub(super) fn looks_at_times(&self) -> bool {
        match self {
            // In every kernel that this program runs on (Linux 3.6).
            Self::Fresh { .. } => true,
            Self::Replay(reply) => reply.flags.contains(InitFlags::FUSE_AUTO_INVAL_DATA),
        }
    }

    /// Sets up the reply.
    pub(super) fn apply(&self, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |_| io::Error::from(io::ErrorKind::Unsupported);
        match self {
            Self::Fresh { resend, passthrough } => {
                let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS
                    // Without READDIRPLUS_AUTO, which would list all but the beginning without attributes: overlayfs
                    // lists first and looks up then, and each look-up would be a request.
                    | InitFlags::FUSE_DO_READDIRPLUS
                    | InitFlags::FUSE_AUTO_INVAL_DATA
                    | InitFlags::FUSE_CACHE_SYMLINKS;
                if *resend {
                    wanted |= InitFlags::FUSE_HAS_RESEND;
                }
                if *passthrough {
                    wanted |= InitFlags::FUSE_PASSTHROUGH;
                    // One level: backing files on a plain file system, overlayfs on top of us.
                    let _ = config.set_max_stack_depth(1);
                }
                // What this kernel does not offer is left out.
                let _ = config.add_capabilities(wanted & config.capabilities());
                let _ = config.set_max_background(MAX_BACKGROUND);
                let _ = config.set_max_write(MAX_REQUEST);
                Ok(())
            }
            Self::Replay(reply) => {
                let flags = reply.flags & !InitFlags::FUSE_INIT_EXT;
                config.add_capabilities(flags).map_err(refused)?;
                config.set_max_readahead(reply.max_readahead).map_err(|_| refused(flags))?;
                config.set_max_background(reply.max_background).map_err(|_| refused(flags))?;
                config.set_congestion_threshold(reply.congestion).map_err(|_| refused(flags))?;
                config.set_max_write(reply.max_write).map_err(|_| refused(flags))?;
                config.set_max_stack_depth(reply.stack_depth).map_err(|_| refused(flags))?;
                Ok(())
            }
        }
    }
}

/// How the worker's session is to be negotiated, from the state of the connection.
pub(super) fn negotiation(session: &Session, fresh: Granted) -> Result<Negotiation, ConnectError> {
    let Some((_, reply)) = session.established() else {
        return Ok(Negotiation::Fresh { resend: fresh.resend, passthrough: fresh.passthrough });
    };
    let reply = Reply::parse(&reply).ok_or(ConnectError::BadReply)?;
    if !reply.granted().resend {
        return Err(ConnectError::NoResend);
    }
    Ok(Negotiation::Replay(reply))
}

/// Performs the handshake; the returned session reads from the device when it runs. For a connection that was
/// established before, the requests that nobody answered are on their way again.
pub(super) fn begin<F: fuser::Filesystem>(
    session: &Session,
    device: BorrowedFd<'_>,
    filesystem: F,
    threads: usize,
    before_run: impl FnOnce(Granted),
) -> Result<(fuser::Session<F>, Granted), ConnectError> {
    let failed = |step| move |source| ConnectError::Io { step, source };
    let before = session.established();
    let is_taken_over = before.is_some();
    let request = match &before {
        Some((request, _)) => request.clone(),
        None => read_init(device)?,
    };
    let (ours, theirs) = socket::pair().map_err(failed("make the handshake's socket"))?;
    socket::send(ours.as_fd(), &request, &[]).map_err(failed("pass INIT on"))?;
    let mut config = Config::default();
    config.n_threads = Some(threads);
    let fuse = fuser::Session::from_fd(filesystem, theirs, SessionACL::All, config)
        .map_err(failed("answer INIT"))?;
    let (reply, _) = socket::receive(ours.as_fd()).map_err(failed("take the reply to INIT"))?;
    let granted = Reply::parse(&reply).ok_or(ConnectError::BadReply)?.granted();
    match before {
        Some((_, known)) if known != reply => return Err(ConnectError::Differs),
        Some(_) => {}
        None => {
            rustix::io::write(device, &reply)
                .map_err(|error| failed("answer the kernel")(error.into()))?;
            session.establish(&request, &reply)?;
        }
    }
    before_run(granted);
    fuse_device::replace(fuse.as_fd(), device).map_err(failed("take the device"))?;
    if is_taken_over {
        fuse_device::resend(device).map_err(failed("ask for unanswered requests"))?;
    }
    Ok((fuse, granted))
}

fn read_init(device: BorrowedFd<'_>) -> Result<Vec<u8>, ConnectError> {
    let failed =
        |source: rustix::io::Errno| ConnectError::Io { step: "read INIT", source: source.into() };
    let mut ready = [PollFd::new(&device, PollFlags::IN)];
    let patience =
        rustix::time::Timespec::try_from(INIT_PATIENCE).map_err(|_| ConnectError::Silent)?;
    if rustix::event::poll(&mut ready, Some(&patience)).map_err(failed)? == 0 {
        return Err(ConnectError::Silent);
    }
    // The kernel wants room for the largest write, though this message is short.
    let mut buffer = vec![0; 1 << 20];
    let length = rustix::io::read(device, &mut buffer).map_err(failed)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// For the keeper: what the connection of `session` was granted, if it was established.
pub(super) fn granted(session: &Session) -> Option<Granted> {
    session.established().and_then(|(_, reply)| Reply::parse(&reply)).map(|reply| reply.granted())
}
