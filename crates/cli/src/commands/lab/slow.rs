//! `muster lab slow`.

use lab::Lab;
use lab::NodeName;

use crate::error::CliError;
use crate::output::Output;

/// Make a node's cables slow, in both directions; mend ends it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster lab slow n1 --rate 1M
  muster lab slow n1 --rate 500k
  muster lab mend n1")]
pub(crate) struct Args {
    /// The node.
    node: NodeName,
    /// Bits per second that each cable carries: 64k to 100G.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: u64,
}

pub(crate) fn run(args: &Args, lab: &Lab, out: Output) -> Result<(), CliError> {
    lab.slow(args.node, args.rate)?;
    let rate = args.rate / 1000;
    out.done(&format!("each cable of {} carries {rate} kbit/s (the kernel shows it)", args.node))
}

/// A count of bits per second with a decimal unit, as networks have it.
fn rate(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err("give bits per second, such as 500k, 10M or 1G".to_owned()),
    };
    let count: u64 = digits.parse().map_err(|_| "it does not begin with a number".to_owned())?;
    count.checked_mul(unit).ok_or_else(|| "that is too many".to_owned())
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn rates_as_networks_have_them() {
        assert_eq!(rate("500k"), Ok(500_000));
        assert_eq!(rate("10M"), Ok(10_000_000));
        assert_eq!(rate("7"), Ok(7));
        for bad in ["", "M", "1x", "-1", "1.5M", "99999999999999999999G", "18446744073709551615k"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
