//! Asking before something is lost.

use std::io::BufRead;
use std::io::IsTerminal;
use std::io::Write;

use crate::context::Context;
use crate::error::CliError;
use crate::output::clean;

/// What happens where nobody can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unasked {
    /// It goes ahead: scripts turn machines off, and what is lost is what the verb says.
    Proceed,
    /// It is refused without `--yes`: what would be lost is lost for good.
    Refuse,
}

/// Asks on a terminal whether to go on, saying what is lost.
///
/// # Errors
/// Where the answer is no, or nobody can be asked and [`Unasked::Refuse`] was given.
pub(crate) fn confirm(
    context: &Context,
    yes: bool,
    loss: &str,
    unasked: Unasked,
) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !terminal || context.out.json {
        return match unasked {
            Unasked::Proceed => Ok(()),
            Unasked::Refuse => Err(CliError::usage(
                format!("{}; there is nobody to ask", clean(loss)),
                "add --yes if that is wanted",
            )),
        };
    }
    eprint!("{}. Go on? [y/N] ", clean(loss));
    // Without the question on the screen the answer would be a guess, so a failed flush is a no.
    std::io::stderr().flush().map_err(|_| refused())?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|_| refused())?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(refused()),
    }
}

/// The name of what is meant, a `node` or a `cluster`, as a person types it, so that no slip of the
/// hand does this.
///
/// # Errors
/// Nothing was typed, or nobody can be asked.
pub(crate) fn typed(
    context: &Context,
    given: Option<String>,
    danger: &str,
    what: &str,
) -> Result<String, CliError> {
    if let Some(given) = given {
        return Ok(given);
    }
    let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !terminal || context.out.json {
        return Err(CliError::usage(
            format!("{}; there is nobody to ask", clean(danger)),
            format!("add --typed {} if that is wanted", what.to_uppercase()),
        ));
    }
    eprint!("{}.\nType the {what}'s name to go on: ", clean(danger));
    std::io::stderr().flush().map_err(|_| refused())?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|_| refused())?;
    match answer.trim() {
        "" => Err(refused()),
        name => Ok(name.to_owned()),
    }
}

fn refused() -> CliError {
    CliError::usage("nothing was done", "")
}
