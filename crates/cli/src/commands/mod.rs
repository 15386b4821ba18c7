//! One folder per noun, one file per verb: `Args` (its doc comments are the help) and `run`.

pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod event;
pub(crate) mod fence;
pub(crate) mod image;
pub(crate) mod lab;
pub(crate) mod metrics;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod op;
pub(crate) mod rule;
pub(crate) mod session;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod util;
pub(crate) mod version;
pub(crate) mod vm;
pub(crate) mod volume;
pub(crate) mod web;
pub(crate) mod whoami;

use api::types::OpView;

use crate::context::Context;
use crate::context::Reply;
use crate::error::CliError;
use crate::operation;

/// Begins an operation on each name, then waits for all of them. One that is refused does not keep
/// the others from being tried; the first failure decides the exit code.
pub(crate) async fn each(
    context: &Context,
    names: &[String],
    begin: impl AsyncFn(&str) -> Result<Reply<OpView>, CliError>,
) -> Result<(), CliError> {
    let mut first = None;
    let mut ops = Vec::new();
    for name in names {
        match begin(name).await {
            Ok(op) => ops.push(op),
            Err(error) if error.exit_code() == 130 => return Err(error),
            Err(error) => keep(context, &mut first, error),
        }
    }
    for op in ops {
        match operation::finish(context, op).await {
            Err(error) if error.exit_code() == 130 => return Err(error),
            Err(error) => keep(context, &mut first, error),
            Ok(()) => {}
        }
    }
    first.map_or(Ok(()), Err)
}

fn keep(context: &Context, first: &mut Option<CliError>, error: CliError) {
    if first.is_some() {
        context.out.error(&error);
    } else {
        *first = Some(error);
    }
}

/// Declares a noun: its verbs, each in the module of its name, and the way to them.
macro_rules! noun {
    ($(#[$doc:meta])* $($verb:ident($module:ident)),* $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, clap::Args)]
        pub(crate) struct Args {
            /// What to do.
            #[command(subcommand)]
            verb: Verb,
        }

        #[derive(Debug, clap::Subcommand)]
        enum Verb {
            $($verb($module::Args),)*
        }

        /// Does what the verb says.
        pub(crate) async fn run(
            args: Args,
            context: &crate::context::Context,
        ) -> Result<(), crate::error::CliError> {
            match args.verb {
                $(Verb::$verb(args) => $module::run(args, context).await,)*
            }
        }
    };
}
pub(crate) use noun;
