//! The caller's side of a program that runs in a terminal: raw mode, copying, window size.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, Winsize};

use super::TerminalSize;

/// How often the window size is looked at. SIGWINCH is not used: with other threads about, no thread can be sure to
/// get it without changing the disposition for the whole program.
const SIZE_CHECK_MS: i64 = 200;

/// How long output may take from the program's side of the terminal to ours.
const LAST_OUTPUT: Duration = Duration::from_millis(200);

/// What a terminal sends for the end of input.
const END_OF_INPUT: u8 = 4;

/// Bytes going both ways between the caller's streams and the program's terminal.
pub(super) struct Session<'a> {
    master: OwnedFd,
    stdin: BorrowedFd<'a>,
    stdout: BorrowedFd<'a>,
    saved: Option<Termios>,
}

impl<'a> Session<'a> {
    /// Makes the caller's terminal raw, if it is one, until the session is dropped.
    pub(super) fn begin(
        master: OwnedFd,
        stdin: BorrowedFd<'a>,
        stdout: BorrowedFd<'a>,
    ) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let mut saved = None;
        if let Ok(attributes) = rustix::termios::tcgetattr(stdin) {
            let mut raw = attributes.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw)?;
            saved = Some(attributes);
        }
        Ok(Self { master, stdin, stdout, saved })
    }

    /// Copies until something arrives on `connection` or the program's side is closed; what the program has written
    /// by then is copied too.
    pub(super) fn copy_until(&self, connection: BorrowedFd<'_>) -> io::Result<()> {
        let mut size = None;
        let mut input = Input { pending: Vec::new(), is_open: true };
        loop {
            self.follow_size(&mut size);
            let wants_input = input.is_open && input.pending.is_empty();
            let mut master = PollFlags::IN;
            master.set(PollFlags::OUT, !input.pending.is_empty());
            let mut polled = [
                PollFd::new(&connection, PollFlags::IN),
                PollFd::new(&self.master, master),
                PollFd::new(
                    &self.stdin,
                    if wants_input { PollFlags::IN } else { PollFlags::empty() },
                ),
            ];
            let tick = rustix::time::Timespec { tv_sec: 0, tv_nsec: SIZE_CHECK_MS * 1_000_000 };
            match rustix::event::poll(&mut polled, Some(&tick)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [connection, master, stdin] = polled.map(|fd| fd.revents());
            let is_closed = master.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
                && self.copy_output()?;
            if !connection.is_empty() || is_closed {
                return if is_closed { Ok(()) } else { self.copy_last_output() };
            }
            if wants_input && !stdin.is_empty() {
                input.fill(self.stdin);
            }
            input.drain(self.master.as_fd());
        }
    }

    /// Copies what is there; `true` when no program has the terminal open any more.
    fn copy_output(&self) -> io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match rustix::io::read(&self.master, &mut buffer) {
                Ok(0) | Err(Errno::IO) => return Ok(true),
                Ok(read) => write_all(self.stdout, &buffer[..read])?,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The program has ended. What it wrote last may still be on its way through the kernel; whatever else has the
    /// terminal open is not waited for any longer than that.
    fn copy_last_output(&self) -> io::Result<()> {
        let until = Instant::now() + LAST_OUTPUT;
        while !self.copy_output()? {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(left) = rustix::time::Timespec::try_from(left) else { break };
            let mut polled = [PollFd::new(&self.master, PollFlags::IN)];
            if !matches!(rustix::event::poll(&mut polled, Some(&left)), Ok(1..)) {
                break;
            }
        }
        Ok(())
    }

    fn follow_size(&self, last: &mut Option<TerminalSize>) {
        let size = TerminalSize::of(self.stdin).or_else(|| TerminalSize::of(self.stdout));
        if size.is_some() && size != *last {
            if let Some(TerminalSize { rows, columns }) = size {
                let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                let _ = rustix::termios::tcsetwinsize(&self.master, size);
            }
            *last = size;
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            let _ = rustix::termios::tcsetattr(self.stdin, OptionalActions::Now, saved);
        }
    }
}

/// Bytes on their way to the program.
struct Input {
    pending: Vec<u8>,
    is_open: bool,
}

impl Input {
    fn fill(&mut self, stdin: BorrowedFd<'_>) {
        let mut buffer = [0; 4096];
        match rustix::io::read(stdin, &mut buffer) {
            Ok(0) | Err(Errno::IO) => {
                self.pending.push(END_OF_INPUT);
                self.is_open = false;
            }
            Ok(read) => self.pending.extend_from_slice(&buffer[..read]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.is_open = false,
        }
    }

    fn drain(&mut self, master: BorrowedFd<'_>) {
        if self.pending.is_empty() {
            return;
        }
        match rustix::io::write(master, &self.pending) {
            Ok(written) => drop(self.pending.drain(..written)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The program has closed its side; there is nobody left to type for.
            Err(_) => self.pending.clear(),
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut polled = [PollFd::new(&fd, PollFlags::OUT)];
                let _ = rustix::event::poll(&mut polled, None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
