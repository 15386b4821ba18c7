//! `muster vm screenshot`.

use std::path::Path;
use std::path::PathBuf;

use api::endpoint::Endpoint;
use api::endpoint::Nothing;
use api::endpoint::VmScreenshot;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Write a picture of the guest's screen (PNG).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm screenshot web-1
  muster vm screenshot web-1 -o screen.png
  muster vm screenshot web-1 -o - | display")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
    /// Where to write it; NAME.png if left out, `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let nothing = Nothing {};
    let picture =
        context.client.call_raw(&VmScreenshot::INFO, &[&args.vm], &nothing, &nothing).await?;
    let file = match args.output {
        Some(file) if file.as_os_str() == "-" => {
            if context.out.terminal {
                return Err(CliError::usage(
                    "a picture would only make a mess of the terminal",
                    "name a file with -o, or send the output through a pipe",
                ));
            }
            return context.out.bytes(&picture);
        }
        Some(file) => file,
        // A name has no slashes; what is not a name was refused by the daemon.
        None => PathBuf::from(format!("{}.png", args.vm)),
    };
    write_atomically(&file, &picture).map_err(|error| {
        CliError::failed(
            format!("cannot write {}: {error}", file.display()),
            "name another file with -o",
        )
    })?;
    if context.out.json {
        let document = serde_json::json!({ "file": file, "bytes": picture.len() });
        return context.out.text(&document.to_string());
    }
    context.out.done(&format!("{} written", file.display()))
}

/// Whoever looks at the file sees the old picture or the new one, never half of one.
fn write_atomically(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = file.with_file_name(name);
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, file));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&part);
    }
    written
}
