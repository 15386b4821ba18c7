//! The terminal in raw mode, and back in any case.

use std::io::IsTerminal;
use std::sync::Once;

use ratatui::crossterm::terminal;

use crate::error::CliError;

/// Keeps the terminal in raw mode while it lives. A panic puts it back before the message.
#[derive(Debug)]
pub(crate) struct RawMode {
    on: bool,
}

impl RawMode {
    /// Switches to raw mode if standard input is a terminal.
    pub(crate) fn enter() -> Result<Self, CliError> {
        static HOOK: Once = Once::new();
        if !std::io::stdin().is_terminal() {
            return Ok(Self { on: false });
        }
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                // Nothing better can be done about a terminal that cannot be put back.
                let _ = terminal::disable_raw_mode();
                before(info);
            }));
        });
        terminal::enable_raw_mode().map_err(|error| {
            CliError::failed(
                format!("the terminal cannot be switched to raw mode: {error}"),
                "give input by a pipe instead",
            )
        })?;
        Ok(Self { on: true })
    }

    /// Whether keys arrive one by one.
    pub(crate) const fn is_on(&self) -> bool {
        self.on
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if self.on {
            // The terminal may be gone by now (SIGHUP); then there is nothing to put back.
            let _ = terminal::disable_raw_mode();
        }
    }
}
