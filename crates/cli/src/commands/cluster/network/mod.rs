//! Networks that hosts have in common.

mod forget;
mod list;
mod set;
mod strict;

use api::cluster_network::ClusterNetworksView;

use crate::commands::noun;
use crate::output::Output;
use crate::output::Tone;
use crate::output::table::Field;
use crate::output::table::List;

noun! {
    /// Networks that hosts have in common: names, and which of them machines move over.
    List(list),
    Set(set),
    Forget(forget),
    Strict(strict),
}

/// All networks, and what happens when none with the role works.
fn render(out: &Output, view: &ClusterNetworksView) -> String {
    let mut list = List::new(out, &["NETWORK", "NAME", "CALLS", "MIGRATION", "NODES", "NOT IN IT"]);
    for network in &view.networks {
        let name = network.name.as_ref().map_or("-".to_owned(), ToString::to_string);
        let missing: Vec<_> = network.missing.iter().map(ToString::to_string).collect();
        list.row(vec![
            Field::from(network.subnet.to_string()),
            Field::from(name),
            Field::from(if network.cluster { "yes" } else { "-" }.to_owned()),
            match network.migration {
                Some(place) => Field::toned(place.to_string(), Tone::Good),
                None => Field::from("-".to_owned()),
            },
            Field::from(network.nodes.len()),
            match missing.is_empty() {
                true => Field::from("-".to_owned()),
                false => Field::toned(missing.join(", "), Tone::Busy),
            },
        ]);
    }
    let with_role = view.networks.iter().any(|network| network.migration.is_some());
    let rule = match (with_role, view.strict) {
        (false, _) => {
            "No network has the migration role: machines move over those of other calls.\n\
             Give it to one: muster cluster network set SUBNET --name NAME --migration 1"
        }
        (true, false) => {
            "Machines move over networks with the migration role, in their order; where none of them \
             works, over those of other calls."
        }
        (true, true) => "Machines move over networks with the migration role only.",
    };
    format!("{}\n{rule}\n", list.render("no two nodes have said that they share a network"))
}
