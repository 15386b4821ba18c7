//! `muster cluster witness set`.

use std::path::Path;
use std::path::PathBuf;

use api::endpoint::WitnessSet;
use api::witness::WitnessPlaceBody;
use api::witness::WitnessSetBody;

use crate::commands::cluster::witness::show::render;
use crate::context::Context;
use crate::error::CliError;

/// Let the cluster have a witness: a third vote, so that either of two nodes may be lost.
///
/// It is tried out before it is taken, and a store that does not keep its word is refused. It must
/// depend on neither of the nodes: not a share that one of them serves.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster cluster witness set --directory /mnt/share/witness
  muster cluster witness set --block /dev/disk/by-id/wwn-0x600140500000000000000000000000ff
  muster cluster witness set --address 192.0.2.9:7446 --witness-token-file /root/witness-token
  muster cluster witness set --s3 s3://bucket/muster --option aws_region=eu-central-1 \\
      --option aws_access_key_id=AKEXAMPLE --secret-file aws_secret_access_key=/root/s3-key
  muster cluster witness set --azure az://container/muster \\
      --option azure_storage_account_name=lab --secret-file azure_storage_account_key=/root/key")]
#[command(group = clap::ArgGroup::new("where").required(true))]
pub(crate) struct Args {
    /// A directory of a share that all nodes mount at this path; it must exist.
    #[arg(long, value_name = "PATH", group = "where")]
    directory: Option<String>,
    /// A block device that all nodes see under this path, empty, of at least 256 MiB.
    #[arg(long, value_name = "PATH", group = "where")]
    block: Option<String>,
    /// A bucket of S3, or of a store that speaks like it.
    #[arg(long, value_name = "s3://BUCKET/FOLDER", group = "where")]
    s3: Option<String>,
    /// A container of Azure Blob.
    #[arg(long, value_name = "az://CONTAINER/FOLDER", group = "where")]
    azure: Option<String>,
    /// The token that `muster witness` printed, read from the first line of a file; `-` is standard
    /// input.
    #[arg(long, value_name = "FILE", group = "where")]
    witness_token_file: Option<String>,
    /// Where the nodes reach that `muster witness`, if not where its token says.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "witness_token_file")]
    address: Option<String>,
    /// An option of the object store, such as `aws_endpoint=https://s3.example.org`.
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = pair)]
    options: Vec<(String, String)>,
    /// A secret option of the object store, read from the first line of a file; `-` is standard
    /// input.
    #[arg(long = "secret-file", value_name = "NAME=FILE", value_parser = pair)]
    secrets: Vec<(String, String)>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = WitnessSetBody { place: place(args)? };
    let witness = context.send::<WitnessSet>(&[], &body).await?;
    context.out.reply(&witness, |witness| render(&context.out, witness))?;
    context.out.note("see when it votes: muster cluster status");
    Ok(())
}

fn place(args: Args) -> Result<WitnessPlaceBody, CliError> {
    let Args { directory, block, s3, azure, witness_token_file, address, options, secrets } = args;
    let object = s3.or(azure);
    if object.is_none() && !(options.is_empty() && secrets.is_empty()) {
        return Err(CliError::usage(
            "options and secrets are for object stores",
            "leave --option and --secret-file away, or name a store: --s3, --azure",
        ));
    }
    if let Some(path) = directory {
        return Ok(WitnessPlaceBody::Directory { path });
    }
    if let Some(path) = block {
        return Ok(WitnessPlaceBody::Block { path });
    }
    if let Some(file) = witness_token_file {
        return Ok(WitnessPlaceBody::Remote { token: first_line(&file)?, address });
    }
    let read = |(name, file): (String, String)| Ok((name, first_line(&file)?));
    Ok(WitnessPlaceBody::Object {
        url: object.unwrap_or_default(),
        options: options.into_iter().collect(),
        secrets: secrets.into_iter().map(read).collect::<Result<_, CliError>>()?,
    })
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it must be NAME=VALUE".to_owned()),
    }
}

fn first_line(file: &str) -> Result<String, CliError> {
    let path = if file == "-" { PathBuf::from("/dev/stdin") } else { Path::new(file).to_owned() };
    let text = std::fs::read_to_string(&path).map_err(|error| {
        CliError::usage(
            format!("cannot read the secret {}: {error}", path.display()),
            "name a file that holds it on its first line",
        )
    })?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
