//! `muster fence device add`.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use api::endpoint::FenceDeviceAdd;
use api::fence::FenceDeviceAddBody;
use api::model::Name;

use crate::commands::fence::device::show::render;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;

/// Add a device that switches nodes off, spoken to by a program of the package fence-agents.
///
/// What the program needs is given as options (see its man page: `man fence_ipmilan`); passwords as
/// secrets, from a file or standard input, so that nobody sees them in a list of processes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster fence device add bmc-1 --agent fence_ipmilan --node host-1 --option ip=10.0.0.11 \\
      --option username=muster --option lanplus=1 --secret-file password=/root/bmc-1
  muster fence device add pdu --agent fence_apc_snmp --node host-1=3 --node host-2=4 \\
      --option ip=10.0.0.20 --level 2")]
pub(crate) struct Args {
    /// Its name.
    name: Name,
    /// The program, such as fence_ipmilan.
    #[arg(long)]
    agent: String,
    /// A node that it switches off; NODE=PLUG where the device calls it by an outlet or a name.
    #[arg(long = "node", value_name = "NODE[=PLUG]", required = true, add = complete::nodes())]
    nodes: Vec<String>,
    /// An option of the program.
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = pair)]
    options: Vec<(String, String)>,
    /// A secret option of the program, read from the first line of a file; `-` is standard input.
    #[arg(long = "secret-file", value_name = "NAME=FILE", value_parser = pair)]
    secrets: Vec<(String, String)>,
    /// Levels are tried in order, 1 first; all devices of a level must succeed.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    level: u8,
    /// How long one call of the program may take, in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=300))]
    timeout: u32,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let mut secrets = BTreeMap::new();
    for (name, file) in args.secrets {
        let secret = read_secret(&file)?;
        secrets.insert(name, secret);
    }
    let nodes = args.nodes.iter().map(|node| match node.split_once('=') {
        Some((node, plug)) => (node.to_owned(), Some(plug.to_owned())),
        None => (node.clone(), None),
    });
    let body = FenceDeviceAddBody {
        name: args.name,
        agent: args.agent,
        options: args.options.into_iter().collect(),
        secrets,
        nodes: nodes.collect(),
        level: args.level,
        timeout_s: args.timeout,
    };
    let device = context.send::<FenceDeviceAdd>(&[], &body).await?;
    context.out.reply(&device, |device| render(&context.out, device))?;
    context.out.note(&format!("see that it answers: muster fence device test {}", body.name));
    Ok(())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it must be NAME=VALUE".to_owned()),
    }
}

fn read_secret(file: &str) -> Result<String, CliError> {
    let path = if file == "-" { PathBuf::from("/dev/stdin") } else { Path::new(file).to_owned() };
    let text = std::fs::read_to_string(&path).map_err(|error| {
        CliError::usage(
            format!("cannot read the secret {}: {error}", path.display()),
            "name a file that holds it on its first line",
        )
    })?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
