//! Clients of the API: each asks one thing after another, of any node, and writes down what it was
//! told. A network's name is the register: it can be made if it is not there, and removed by its id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use cluster::raft::ProposeError;
use model::Command;
use model::NetworkId;
use model::NetworkKind;
use node::simulation::Daemon;
use node::truth::Truth;
use sim::linear::Answer;
use sim::linear::Ask;
use sim::linear::Call;
use sim::rng::Rng;
use uuid::Uuid;

use crate::ground::Ground;
use crate::ground::lock;
use crate::host::Host;
use crate::host::proposal;
use crate::plant::Plant;
use crate::setup::name;

/// Clients at a time.
const CLIENTS: usize = 4;

/// Registers.
const KEYS: u64 = 3;

/// Ids of registers' values begin here.
const VALUES: u128 = 1 << 64;

struct Client {
    next: u64,
    open: Option<Open>,
}

struct Open {
    key: u64,
    begin: u64,
    ask: Ask,
    host: usize,
    incarnation: u64,
    answer: Arc<Mutex<Option<Answer>>>,
}

/// The clients and their history.
pub(crate) struct Clients {
    rng: Rng,
    ground: Arc<Ground>,
    clients: Vec<Client>,
    order: u64,
    values: u64,
    last: BTreeMap<u64, u64>,
    history: BTreeMap<u64, Vec<Call>>,
    pub(crate) answered: u64,
    pub(crate) unknown: u64,
    /// Writes that each host has answered since it was asked last.
    pub(crate) served: BTreeMap<usize, u64>,
}

impl Clients {
    pub(crate) fn new(mut rng: Rng, ground: Arc<Ground>) -> Self {
        let clients = (0..CLIENTS).map(|_| Client { next: rng.below(500), open: None }).collect();
        Self {
            rng,
            ground,
            clients,
            order: 0,
            values: 0,
            last: BTreeMap::new(),
            history: BTreeMap::new(),
            answered: 0,
            unknown: 0,
            served: BTreeMap::new(),
        }
    }

    /// Takes answers, and asks again.
    pub(crate) fn turn(&mut self, hosts: &[Host]) {
        let now = self.ground.now();
        for index in 0..self.clients.len() {
            self.collect(index, hosts);
            if self.clients[index].open.is_none() && self.clients[index].next <= now {
                self.ask(index, hosts);
            }
        }
    }

    fn collect(&mut self, index: usize, hosts: &[Host]) {
        let Some(open) = &self.clients[index].open else { return };
        let there = hosts[open.host].incarnation() == Some(open.incarnation);
        let answer = *lock(&open.answer);
        let Some(answer) = answer.or((!there).then_some(Answer::Unknown)) else { return };
        let Some(open) = self.clients[index].open.take() else { return };
        self.order += 1;
        let end = self.order;
        let Open { key, begin, ask, host, .. } = open;
        self.ground.trace(&format!("c{}", index + 1), &format!("{answer:?}"));
        if answer == Answer::Unknown {
            self.unknown += 1;
        } else {
            self.answered += 1;
            if ask != Ask::Read {
                *self.served.entry(host).or_default() += 1;
            }
        }
        if let (Ask::Create(value), Answer::Done) | (Ask::Read, Answer::Value(Some(value))) =
            (ask, answer)
        {
            self.last.insert(key, value);
        }
        self.history.entry(key).or_default().push(Call { begin, end, ask, answer });
        self.clients[index].next = self.ground.now() + self.rng.below(600);
    }

    fn ask(&mut self, index: usize, hosts: &[Host]) {
        let host = self.rng.place(hosts.len());
        let key = self.rng.below(KEYS);
        self.values += 1;
        let ask = match (self.rng.below(10), self.last.get(&key)) {
            (0..4, _) | (4..7, None) => Ask::Create(self.values),
            (4..7, Some(value)) => Ask::Delete(*value),
            _ => Ask::Read,
        };
        let (Some(daemon), Some(incarnation)) = (hosts[host].daemon(), hosts[host].incarnation())
        else {
            self.clients[index].next = self.ground.now() + 100;
            return;
        };
        self.order += 1;
        let answer = Arc::new(Mutex::new(None));
        let place = answer.clone();
        let plant = self.ground.plant;
        if !hosts[host].spawn(async move {
            let answer = call(&daemon, key, ask, plant).await;
            *lock(&place) = Some(answer);
        }) {
            return;
        }
        let what = format!("asks n{} k{key} {ask:?}", host + 1);
        self.ground.trace(&format!("c{}", index + 1), &what);
        let begin = self.order;
        self.clients[index].open = Some(Open { key, begin, ask, host, incarnation, answer });
    }

    /// The calls of each register, those that are open among them.
    pub(crate) fn history(&self) -> BTreeMap<u64, Vec<Call>> {
        let mut history = self.history.clone();
        for open in self.clients.iter().filter_map(|client| client.open.as_ref()) {
            let call =
                Call { begin: open.begin, end: u64::MAX, ask: open.ask, answer: Answer::Unknown };
            history.entry(open.key).or_default().push(call);
        }
        history
    }
}

async fn call(daemon: &Arc<Daemon>, key: u64, ask: Ask, plant: Option<Plant>) -> Answer {
    let truth = daemon.truth().clone();
    let command = match ask {
        Ask::Read => {
            if plant != Some(Plant::StaleRead) && truth.barrier().await.is_err() {
                return Answer::Unknown;
            }
            let state = truth.state();
            let name = name(&format!("k{key}"));
            let found = state.networks.values().find(|network| network.name == name);
            let value =
                found.and_then(|found| u64::try_from(found.id.uuid().as_u128() - VALUES).ok());
            return Answer::Value(value);
        }
        Ask::Create(value) => Command::NetworkCreate {
            network: network(value),
            name: name(&format!("k{key}")),
            kind: NetworkKind::Bridge { bridge: "br0".to_owned() },
        },
        Ask::Delete(value) => Command::NetworkDelete { network: network(value) },
    };
    if plant == Some(Plant::EarlyAnswer) {
        let key = name(&format!("k{key}"));
        let there = match ask {
            Ask::Delete(value) => truth.state().networks.contains_key(&network(value)),
            _ => !truth.state().networks.values().any(|network| network.name == key),
        };
        if !there {
            return Answer::Refused;
        }
        tokio::spawn(async move { truth.propose(proposal(command)).await });
        return Answer::Done;
    }
    match truth.propose(proposal(command)).await {
        Ok(_) => Answer::Done,
        Err(ProposeError::Refused(_)) => Answer::Refused,
        Err(ProposeError::Unavailable(_)) => Answer::NotDone,
        Err(ProposeError::Unknown) => Answer::Unknown,
    }
}

fn network(value: u64) -> NetworkId {
    NetworkId::new(Uuid::from_u128(VALUES + u128::from(value)))
}
