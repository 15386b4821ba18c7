//! A node: the shells around the client, the takeover and the coordinator.

use std::collections::BTreeMap;

use volume::lease::Access;
use volume::lease::Client;
use volume::lease::ClientEffect;
use volume::lease::ClientInput;
use volume::lease::Coordinator;
use volume::lease::CoordinatorEffect;
use volume::lease::CoordinatorInput;
use volume::lease::DeviceDeed;
use volume::lease::Epoch;
use volume::lease::FileId;
use volume::lease::Limits;
use volume::lease::Payload;
use volume::lease::RegisterOutcome;
use volume::lease::ReservationKey;
use volume::lease::Takeover;
use volume::lease::TakeoverEffect;
use volume::lease::TakeoverInput;
use volume::lease::ToClient;
use volume::lease::ToCoordinator;

use crate::deeds::Serving;
use crate::guests::Guest;
use crate::guests::Pending;
use crate::lun::Command;
use crate::lun::Reply;
use crate::plant::Plant;
use crate::world::Audit;
use crate::world::Event;
use crate::world::For;
use crate::world::Message;
use crate::world::World;
use crate::world::id_of;

pub(crate) struct Node {
    pub(crate) up: bool,
    pub(crate) boot: u32,
    pub(crate) paused_until: u64,
    pub(crate) path: bool,
    /// Commands that the host has not ended.
    pub(crate) outstanding: usize,
    pub(crate) client: Client,
    /// The client may use its path: no coordinator is here, and none is coming.
    may_direct: bool,
    /// Losses of the LUN's cache that this node knew of when its key was registered, and when it
    /// took the volume over.
    pub(crate) client_losses: u64,
    pub(crate) reign_losses: u64,
    /// The client's key that is to be registered when nothing is on the way.
    register: Option<ReservationKey>,
    pub(crate) takeover: Option<Takeover>,
    draining: bool,
    pub(crate) coordinator: Option<Serving>,
    pub(crate) view: Epoch,
    pub(crate) guests: BTreeMap<u64, Guest>,
    pub(crate) ios: BTreeMap<u64, Pending>,
}

impl Node {
    pub(crate) fn new(node: usize, limits: &Limits, boot: u32) -> Self {
        Self {
            up: true,
            boot,
            paused_until: 0,
            path: true,
            outstanding: 0,
            client: Client::new(id_of(node), limits.clone(), u64::from(boot) << 32),
            may_direct: false,
            client_losses: 0,
            reign_losses: 0,
            register: None,
            takeover: None,
            draining: false,
            coordinator: None,
            view: Epoch(0),
            guests: BTreeMap::new(),
            ios: BTreeMap::new(),
        }
    }
}

pub(crate) fn pack(values: &[u64]) -> Payload {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn unpack(data: &[u8]) -> Vec<u64> {
    let words = data.chunks_exact(8);
    words.map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect()
}

impl World {
    // ---- client

    pub(crate) fn serve(&mut self, node: usize, input: ClientInput) {
        let clock = self.clock();
        let effects = self.nodes[node].client.step(clock, input);
        for effect in effects {
            match effect {
                ClientEffect::Send { to, message } => {
                    let to = (0..self.nodes.len()).find(|it| id_of(*it) == to).unwrap_or(0);
                    if let ToCoordinator::Ask { ask, .. } = &message
                        && matches!(
                            ask,
                            volume::lease::Ask::Read { .. } | volume::lease::Ask::Write { .. }
                        )
                    {
                        self.tally.redirected += 1;
                    }
                    self.post(node, to, Message::Up(message));
                }
                ClientEffect::Device { part, at, key, deed } => {
                    self.device(node, part, at, key, &deed);
                }
                ClientEffect::Register(key) => {
                    self.nodes[node].register = Some(key);
                    self.drained(node);
                }
                ClientEffect::Opened { handle, result } => self.opened(node, handle, &result),
                ClientEffect::Complete { io, result } => self.completed(node, io, result),
            }
        }
    }

    fn device(
        &mut self,
        node: usize,
        part: u64,
        (file, first): (FileId, u64),
        key: ReservationKey,
        deed: &DeviceDeed,
    ) {
        self.tally.direct += 1;
        let (command, span, access) = match deed {
            DeviceDeed::Flush => {
                return self.command(node, For::Part(part), Command::Flush, Audit::None);
            }
            DeviceDeed::Read(span) => {
                (Command::Read((span.start..span.end()).collect()), *span, Access::Read)
            }
            DeviceDeed::Write(span, data) => {
                let values = unpack(data);
                let pairs = (span.start..span.end()).zip(values).collect();
                (Command::Write(pairs), *span, Access::Write)
            }
        };
        let pairs = (0..span.count).map(|it| (first + it, span.start + it)).collect();
        let audit = Audit::Direct { key, file, pairs, access };
        self.command(node, For::Part(part), command, audit);
    }

    /// Things that wait until nothing of this host is on the way to the LUN.
    pub(crate) fn drained(&mut self, node: usize) {
        let host = &mut self.nodes[node];
        let careless = self.plant == Some(Plant::NoDrain);
        if !host.up || (host.outstanding > 0 && !careless) {
            return;
        }
        if host.draining && host.client.is_drained() {
            host.draining = false;
            return self.take_over(node, TakeoverInput::Drained);
        }
        if host.takeover.is_none()
            && host.coordinator.is_none()
            && let Some(key) = host.register.take()
        {
            self.nodes[node].client_losses = self.lun.losses(node);
            self.command(node, For::ClientKey(key), Command::Register(key), Audit::None);
        }
    }

    /// Tells the client whether it may use the path.
    pub(crate) fn tell_path(&mut self, node: usize) {
        let host = &self.nodes[node];
        let usable = host.path && host.takeover.is_none() && host.coordinator.is_none();
        if usable != host.may_direct {
            self.nodes[node].may_direct = usable;
            self.serve(node, ClientInput::Path(usable));
        }
    }

    pub(crate) fn view(&mut self, node: usize, epoch: Epoch, coordinator: usize) {
        if !self.nodes[node].up || self.nodes[node].view >= epoch {
            return;
        }
        self.nodes[node].view = epoch;
        // Whoever was the coordinator, or wanted to be, is not any more.
        if self.nodes[node].coordinator.as_ref().is_some_and(|it| it.epoch < epoch) {
            self.nodes[node].coordinator = None;
        }
        if self.nodes[node].takeover.as_ref().is_some_and(|it| it.epoch() < epoch) {
            self.nodes[node].takeover = None;
            self.nodes[node].draining = false;
        }
        self.serve(node, ClientInput::View { epoch, coordinator: id_of(coordinator) });
        self.tell_path(node);
    }

    // ---- takeover

    pub(crate) fn elected(&mut self, node: usize, epoch: Epoch) {
        self.view(node, epoch, node);
        if self.nodes[node].view != epoch {
            return;
        }
        self.say(&|| format!("n{node} takes over for {epoch:?}"));
        let (takeover, effect) = Takeover::new(epoch);
        self.nodes[node].coordinator = None;
        self.nodes[node].reign_losses = self.lun.losses(node);
        self.nodes[node].takeover = Some(takeover);
        self.tell_path(node);
        self.takeover_effect(node, epoch, &effect);
        self.drained(node);
    }

    fn take_over(&mut self, node: usize, input: TakeoverInput) {
        let Some(takeover) = &mut self.nodes[node].takeover else { return };
        let epoch = takeover.epoch();
        let effects = takeover.step(input);
        for effect in effects {
            self.takeover_effect(node, epoch, &effect);
        }
    }

    fn takeover_effect(&mut self, node: usize, epoch: Epoch, effect: &TakeoverEffect) {
        let own = Audit::Own { epoch };
        match effect {
            TakeoverEffect::Drain => self.nodes[node].draining = true,
            TakeoverEffect::AbortOwn => {
                self.command(node, For::Takeover(epoch), Command::AbortOwn, Audit::None);
            }
            TakeoverEffect::Register(key) => {
                let whom = For::Takeover(epoch);
                self.command(node, whom, Command::Register(*key), Audit::None);
            }
            TakeoverEffect::ReadKeys => {
                self.command(node, For::Takeover(epoch), Command::ReadKeys, Audit::None);
            }
            TakeoverEffect::Preempt(key) if self.plant == Some(Plant::NoClear) => {
                self.take_over(node, TakeoverInput::Preempted(*key));
            }
            TakeoverEffect::Preempt(key) => {
                let whom = For::TakeoverPreempt(epoch, *key);
                self.command(node, whom, Command::Preempt(*key), Audit::None);
            }
            TakeoverEffect::Mount => self.command(node, For::Takeover(epoch), Command::Load, own),
            TakeoverEffect::Serve => {}
            TakeoverEffect::GiveUp => {
                self.say(&|| format!("n{node} gives up {epoch:?}"));
                self.nodes[node].takeover = None;
                self.command(node, For::Nobody, Command::Unregister, Audit::None);
                self.tell_path(node);
            }
        }
    }

    fn keys_seen(&self, epoch: Epoch, keys: Vec<ReservationKey>) -> Vec<ReservationKey> {
        let keys = keys.into_iter();
        match self.plant {
            Some(Plant::NoClear) => keys.filter(|key| key.epoch() >= epoch).collect(),
            Some(Plant::NoLook) => keys.filter(|key| key.epoch() <= epoch).collect(),
            _ => keys.collect(),
        }
    }

    fn mounted(&mut self, node: usize, tables: &crate::fs::Tables) {
        let Some(takeover) = &mut self.nodes[node].takeover else { return };
        let epoch = takeover.epoch();
        if takeover.step(TakeoverInput::Mounted) != [TakeoverEffect::Serve] {
            return;
        }
        self.say(&|| format!("n{node} serves {epoch:?}"));
        let members = (0..self.nodes.len()).map(id_of).collect();
        let machine = Coordinator::new(epoch, self.limits.clone(), members, self.clock());
        self.nodes[node].takeover = None;
        self.nodes[node].coordinator = Some(Serving::new(epoch, machine, tables));
    }

    // ---- coordinator

    pub(crate) fn coordinate(&mut self, node: usize, input: CoordinatorInput) {
        let clock = self.clock();
        let Some(serving) = &mut self.nodes[node].coordinator else { return };
        let epoch = serving.epoch;
        let effects = serving.machine.step(clock, input);
        if epoch == self.epoch && node == self.seat {
            self.ledger = serving.machine.leases().map(|(file, lease)| (file, *lease)).collect();
        }
        for effect in effects {
            match effect {
                CoordinatorEffect::Send { to, message } => {
                    let to = (0..self.nodes.len()).find(|it| id_of(*it) == to).unwrap_or(0);
                    self.reply_to_client(node, to, message);
                }
                CoordinatorEffect::Fence(key) => {
                    if self.plant == Some(Plant::FenceUnproved) {
                        self.coordinate(node, CoordinatorInput::Fenced(key));
                    } else {
                        self.command(node, For::Fence(key), Command::Preempt(key), Audit::None);
                    }
                }
                CoordinatorEffect::Do { id, deed } => self.deed(node, id, deed),
            }
        }
    }

    fn reply_to_client(&mut self, node: usize, to: usize, message: ToClient) {
        if let ToClient::Recall { session, file, upto, span } = message {
            self.tally.recalls += 1;
            if self.plant == Some(Plant::KeepLease) {
                let message = Message::Up(ToCoordinator::Released { session, file, upto, span });
                return self.at(1, Event::Deliver { from: to, to: node, message });
            }
        }
        self.post(node, to, Message::Down(message));
    }

    /// The LUN has refused the coordinator, or its path has gone: it cannot know what it has done.
    pub(crate) fn coordinator_failed(&mut self, node: usize) {
        self.say(&|| format!("n{node} is no coordinator any more"));
        self.nodes[node].coordinator = None;
        self.tell_path(node);
    }

    pub(crate) fn reply(&mut self, node: usize, whom: For, reply: Reply) {
        let host = &self.nodes[node];
        let reign_is_sure = host.reign_losses == self.lun.losses(node);
        let takes = |epoch| host.takeover.as_ref().is_some_and(|it| it.epoch() == epoch);
        let leads = |epoch| host.coordinator.as_ref().is_some_and(|it| it.epoch == epoch);
        match whom {
            For::Part(part) => {
                let doubtful = host.client_losses != self.lun.losses(node);
                let result = match reply {
                    // Told while the answer was on its way.
                    _ if doubtful => None,
                    Reply::Data(values) => Some(pack(&values)),
                    Reply::Failed => None,
                    _ => Some([].into()),
                };
                self.serve(node, ClientInput::Device { part, result });
            }
            For::ClientKey(key) | For::ClientLook(key) => self.client_key(node, key, reply),
            For::Takeover(epoch) if takes(epoch) => match reply {
                Reply::Aborted => self.take_over(node, TakeoverInput::Aborted),
                Reply::Done => self.take_over(node, TakeoverInput::Registered),
                Reply::Keys(keys) => {
                    let keys = self.keys_seen(epoch, keys);
                    self.take_over(node, TakeoverInput::Keys(keys));
                }
                Reply::Tables(tables) => self.mounted(node, &tables),
                _ => self.take_over(node, TakeoverInput::Refused),
            },
            For::TakeoverPreempt(epoch, key) if takes(epoch) => match reply {
                Reply::Done => self.take_over(node, TakeoverInput::Preempted(key)),
                _ => self.take_over(node, TakeoverInput::Refused),
            },
            For::Fence(key) if leads(key.epoch()) => match reply {
                Reply::Done => self.coordinate(node, CoordinatorInput::Fenced(key)),
                _ => self.coordinator_failed(node),
            },
            For::Deed(epoch, id) if leads(epoch) => match reply {
                Reply::Failed => self.coordinator_failed(node),
                _ if !reign_is_sure => self.coordinator_failed(node),
                reply => self.deed_went_on(node, id, &reply),
            },
            For::Commit(epoch) if leads(epoch) => match reply {
                Reply::Failed => self.coordinator_failed(node),
                _ if !reign_is_sure => self.coordinator_failed(node),
                _ => self.committed(node),
            },
            _ => {}
        }
    }

    fn client_key(&mut self, node: usize, key: ReservationKey, reply: Reply) {
        match reply {
            Reply::Done => {
                self.command(node, For::ClientLook(key), Command::ReadKeys, Audit::None);
            }
            Reply::Keys(keys) => {
                let keys = self.keys_seen(key.epoch(), keys);
                let newer = keys.iter().any(|other| other.epoch() > key.epoch());
                let mut outcome = RegisterOutcome::Registered;
                if newer {
                    self.command(node, For::Nobody, Command::Unregister, Audit::None);
                    outcome = RegisterOutcome::Superseded;
                }
                self.serve(node, ClientInput::Registered { key, outcome });
            }
            _ => {
                let outcome = RegisterOutcome::Failed;
                self.serve(node, ClientInput::Registered { key, outcome });
            }
        }
    }
}
