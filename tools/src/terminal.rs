//! The terminal that an operator sits at: raw while a program in a pod has it, and as before afterwards.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Standard input in raw mode; dropping it gives the old mode back.
pub struct Raw(Termios);

impl Raw {
    /// Every key goes to the program, Ctrl-C too.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            bail!("standard input is no terminal: leave out -t, or run this in one");
        }
        let before = tcgetattr(stdin.as_fd()).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)
            .context("cannot set the terminal's mode")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.0);
    }
}

/// Columns and rows of the terminal at standard input; 80 by 24 where it does not say.
#[must_use]
pub fn size() -> (u16, u16) {
    match rustix::termios::tcgetwinsize(std::io::stdin().as_fd()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => (80, 24),
    }
}
