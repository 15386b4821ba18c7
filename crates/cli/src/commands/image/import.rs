//! `muster image import`.

use api::endpoint::ImageImport;
use api::model::ImageFormat;
use api::model::ImageSource;
use api::model::Name;
use api::types::ImageImportBody;

use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::operation;

/// Import an image from a file on the node or from an address.
///
/// The format is told by the file name's ending or by --format, never guessed from the content. An
/// image that names a backing or data file is refused. Ctrl-C stops the import.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster image import debian https://example.org/debian-12-generic-amd64.qcow2
  muster image import debian ./debian.qcow2 --sha256 3f2a...
  muster image import old /srv/export/disk.bin --format vhd")]
pub(crate) struct Args {
    /// Its name here.
    name: Name,
    /// File on the node, or http(s) address.
    source: String,
    /// Its format: raw, qcow2, vhd, vhdx or vmdk; told by the file name's ending if left out.
    #[arg(long)]
    format: Option<ImageFormat>,
    /// Volume it shall lie on; the node's own disks if left out.
    #[arg(long, value_name = "NAME", add = complete::volumes())]
    volume: Option<String>,
    /// The SHA-256 that the source must have, in hexadecimal.
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let body = ImageImportBody {
        source: source(&args.source, context.is_remote())?,
        name: args.name,
        format: args.format,
        volume: args.volume,
        sha256: args.sha256,
    };
    let op = context.send::<ImageImport>(&[], &body).await?;
    operation::finish(context, op).await
}

fn sha256(text: &str) -> Result<String, String> {
    let text = text.trim().to_ascii_lowercase();
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text)
    } else {
        Err("a SHA-256 has 64 hexadecimal digits, as `sha256sum FILE` prints them".to_owned())
    }
}

/// A relative path means this folder on this machine; the daemon knows neither.
fn source(text: &str, remote: bool) -> Result<ImageSource, CliError> {
    if let Some((scheme, _)) = text.split_once("://") {
        return match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => Ok(ImageSource::Url { url: text.to_owned() }),
            _ => Err(CliError::usage(
                format!("'{scheme}' is not an address that images can be fetched from"),
                "give an http or https address, or a file on the node",
            )),
        };
    }
    if remote && !text.starts_with('/') {
        return Err(CliError::usage(
            format!("'{text}' is not an absolute path"),
            "the file is looked for on the node: give its whole path there",
        ));
    }
    let path = std::path::absolute(text).map_err(|error| {
        CliError::usage(format!("'{text}' is not a path: {error}"), "name a file")
    })?;
    match path.into_os_string().into_string() {
        Ok(path) => Ok(ImageSource::File { path }),
        Err(path) => Err(CliError::usage(
            format!("the path {} is not UTF-8", path.display()),
            "rename the file or the folder",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        let here = std::env::current_dir().unwrap();
        let path = |source| match source {
            Ok(ImageSource::File { path }) => path,
            other => panic!("{other:?}"),
        };
        assert_eq!(path(source("a.img", false)), here.join("a.img").to_str().unwrap());
        assert_eq!(path(source("/a.img", true)), "/a.img");
        assert!(source("a.img", true).is_err());
        assert!(matches!(source("HTTPS://x/y", true), Ok(ImageSource::Url { .. })));
        assert!(source("ftp://x/y", false).is_err());
        assert!(source("", false).is_err());
    }

    #[test]
    fn a_checksum_is_checked_before_it_is_sent() {
        assert_eq!(sha256(&"AB".repeat(32)), Ok("ab".repeat(32)));
        assert!(sha256("ab").is_err());
    }
}
