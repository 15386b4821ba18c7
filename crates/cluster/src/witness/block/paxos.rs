//! Agreeing on the next version, over slots that each have one writer.
//!
//! ```text
//!   version k:   promise b in the own slot --> read all slots --> accept (b, value) --> read all --> decided
//!                      ^                             |                                     |
//!                      +---- a higher ballot, after a pause <-------- somebody's is higher +
//!
//!   value: that of the highest ballot accepted for k by anybody, or one's own if nobody has any
//! ```
//!
//! Why at most one value is decided for a version: let b be the lowest ballot that decided, with
//! v. Its node wrote (b, v) and then saw no higher promise. Whoever has a higher ballot promised it
//! after that read, so it reads (b, v), or one accepted later under a higher ballot, which by
//! induction is v, too. A node leaves version k only when it has the decided value of k in its own
//! slot (`instance <= decided + 1`), so a slot that is beyond k says itself that k is decided, and
//! what was decided last is found whatever write was the last one to survive.
//!
//! A node that dies leaves its slot as it is: others go on, and complete what it had accepted.

use std::time::Duration;

use uuid::Uuid;

use super::super::store::StoreError;
use super::super::store::Tag;
use super::super::store::Written;
use super::layout;
use super::layout::AREAS;
use super::layout::Header;
use super::layout::Region;
use super::layout::SLOTS;
use super::layout::Slot;
use super::layout::Value;
use super::medium::Medium;

/// Attempts at one version, and looks for a value that moves under the reader.
const ATTEMPTS_MAX: u32 = 24;

/// The longest pause between two attempts is this times the slot's number and the attempt's.
const PAUSE: Duration = Duration::from_micros(200);

/// A record as one node sees it.
pub(super) struct Record<'a> {
    pub(super) medium: &'a dyn Medium,
    pub(super) header: &'a Header,
    pub(super) name: &'a str,
    pub(super) slot: u16,
    pub(super) region: Region,
}

/// What is to be stored.
struct Wish<'a> {
    nonce: Uuid,
    bytes: &'a [u8],
    gone: bool,
}

/// How an attempt ended.
enum Attempt {
    /// This value is decided.
    Decided(Value),
    /// Somebody else was there, or has gone on.
    Again,
}

fn tag(version: u64, value: &Value) -> Tag {
    Tag(format!("{version}-{}", value.nonce))
}

/// The newest version that is decided, whose slot has it, and its value.
fn newest(slots: &[Option<Slot>]) -> Option<(u64, u16, Value)> {
    let all = slots.iter().zip(0..SLOTS).filter_map(|(slot, number)| {
        let slot = slot.as_ref()?;
        Some((slot.decided, number, slot.value?))
    });
    all.max_by_key(|(decided, ..)| *decided).filter(|(decided, ..)| *decided > 0)
}

impl Record<'_> {
    fn slots(&self) -> Result<Vec<Option<Slot>>, StoreError> {
        let slots = layout::read_slots(self.medium, self.region, self.name)?;
        for slot in slots.iter().flatten() {
            let sound = slot.instance <= slot.decided.saturating_add(1)
                && (slot.decided == 0) == slot.value.is_none();
            if !sound {
                return Err(StoreError::Refused(
                    "a slot contradicts itself; remove the witness and set it anew".to_owned(),
                ));
            }
        }
        Ok(slots)
    }

    /// The bytes of a value, if they are still there.
    fn bytes_of(&self, slot: u16, value: &Value) -> Result<Option<Vec<u8>>, StoreError> {
        let (at, most) = self.header.area(self.region, slot, value.area.min(AREAS - 1));
        if value.bytes > most {
            return Ok(None);
        }
        let bytes = self.medium.read(at, usize::try_from(value.bytes).unwrap_or(0))?;
        Ok((crc32c::crc32c(&bytes) == value.crc).then_some(bytes))
    }

    pub(super) fn read(&self) -> Result<Option<(Vec<u8>, Tag)>, StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some((version, slot, value)) = newest(&self.slots()?) else { return Ok(None) };
            if value.gone {
                return Ok(None);
            }
            if let Some(bytes) = self.bytes_of(slot, &value)? {
                return Ok(Some((bytes, tag(version, &value))));
            }
        }
        Err(StoreError::Unavailable("its value changes too fast, or is damaged".to_owned()))
    }

    pub(super) fn write_if(
        &self,
        expected: Option<&Tag>,
        bytes: &[u8],
    ) -> Result<Written, StoreError> {
        let (_, most) = self.header.area(self.region, self.slot, 0);
        if bytes.len() as u64 > most {
            return Err(StoreError::Refused(format!(
                "the record has {} KiB, the device has room for {}; set the witness anew on a \
                 larger one",
                bytes.len() >> 10,
                most >> 10
            )));
        }
        self.replace(expected, &Wish { nonce: Uuid::new_v4(), bytes, gone: false })
    }

    pub(super) fn remove(&self) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some((version, _, value)) = newest(&self.slots()?) else { return Ok(()) };
            if value.gone {
                return Ok(());
            }
            let wish = Wish { nonce: Uuid::new_v4(), bytes: &[], gone: true };
            if let Written::Yes(_) = self.replace(Some(&tag(version, &value)), &wish)? {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable("others write all the time".to_owned()))
    }

    fn replace(&self, expected: Option<&Tag>, wish: &Wish<'_>) -> Result<Written, StoreError> {
        let current = newest(&self.slots()?);
        let shown = current.filter(|(.., value)| !value.gone);
        if shown.map(|(version, _, value)| tag(version, &value)).as_ref() != expected {
            return Ok(Written::No);
        }
        let version = current.map_or(0, |(version, ..)| version).saturating_add(1);
        for attempt in 1..=ATTEMPTS_MAX {
            match newest(&self.slots()?) {
                Some((now, _, value)) if now == version => {
                    let ours = value.nonce == wish.nonce;
                    return Ok(if ours { Written::Yes(tag(now, &value)) } else { Written::No });
                }
                // Another one may have completed ours and gone on.
                Some((now, ..)) if now > version => {
                    let what = "others have gone on meanwhile".to_owned();
                    return Err(StoreError::Unknown(what));
                }
                _ => {}
            }
            match self.attempt(version, wish)? {
                Attempt::Decided(value) if value.nonce == wish.nonce => {
                    return Ok(Written::Yes(tag(version, &value)));
                }
                Attempt::Decided(_) => return Ok(Written::No),
                Attempt::Again => {
                    std::thread::sleep(PAUSE * attempt * u32::from(self.slot + 1));
                }
            }
        }
        Err(StoreError::Unknown("others write at the same time, again and again".to_owned()))
    }

    fn attempt(&self, version: u64, wish: &Wish<'_>) -> Result<Attempt, StoreError> {
        let slots = self.slots()?;
        let Some(mut own) = self.enter(version, &slots)? else { return Ok(Attempt::Again) };
        let highest = slots.iter().flatten().filter(|slot| slot.instance == version);
        let highest = highest.map(|slot| slot.promised).max().unwrap_or(0);
        let ballot = (highest / u64::from(SLOTS) + 1) * u64::from(SLOTS) + u64::from(self.slot);
        own.promised = ballot;
        self.say(&mut own)?;

        let slots = self.slots()?;
        if self.is_overtaken(&slots, version, ballot) {
            return Ok(Attempt::Again);
        }
        let Some(value) = self.choose(version, wish, &own, &slots)? else {
            return Ok(Attempt::Again);
        };
        own.accepted = Some((ballot, value));
        self.say(&mut own)?;

        if self.is_overtaken(&self.slots()?, version, ballot) {
            return Ok(Attempt::Again);
        }
        own.decided = version;
        own.value = Some(value);
        self.say(&mut own)?;
        Ok(Attempt::Decided(value))
    }

    /// This node's slot, with the value of the version before in it; nothing if that value was
    /// replaced meanwhile.
    fn enter(&self, version: u64, slots: &[Option<Slot>]) -> Result<Option<Slot>, StoreError> {
        let mut own = match slots.get(usize::from(self.slot)) {
            Some(Some(own)) => own.clone(),
            _ => self.fresh()?,
        };
        if own.instance == version {
            return Ok(Some(own));
        }
        assert!(own.instance < version && own.decided < version, "a version is made once");
        if own.decided + 1 < version {
            let Some((before, slot, value)) = newest(slots).filter(|it| it.0 + 1 == version) else {
                return Ok(None);
            };
            let Some(bytes) = self.bytes_of(slot, &value)? else { return Ok(None) };
            let area = self.put(&own, &bytes)?;
            own.decided = before;
            own.value = Some(Value { area, ..value });
        }
        own.instance = version;
        own.promised = 0;
        own.accepted = None;
        Ok(Some(own))
    }

    /// The slot is empty, or has another record's last words; its count goes on, so that the newer
    /// copy is always known.
    fn fresh(&self) -> Result<Slot, StoreError> {
        let seq = layout::last_seq(self.medium, self.region, self.slot)?;
        Ok(Slot { seq, ..Slot::new(self.name) })
    }

    /// Whether another one has a higher ballot for this version, or has it decided.
    fn is_overtaken(&self, slots: &[Option<Slot>], version: u64, ballot: u64) -> bool {
        let others = slots.iter().zip(0..SLOTS).filter(|(_, number)| *number != self.slot);
        let mut others = others.filter_map(|(slot, _)| slot.as_ref());
        others.any(|slot| {
            slot.decided >= version || (slot.instance == version && slot.promised > ballot)
        })
    }

    /// The value to accept, in an area of this slot; nothing if another's was replaced meanwhile.
    fn choose(
        &self,
        version: u64,
        wish: &Wish<'_>,
        own: &Slot,
        slots: &[Option<Slot>],
    ) -> Result<Option<Value>, StoreError> {
        let accepted = slots.iter().zip(0..SLOTS).filter_map(|(slot, number)| {
            let slot = slot.as_ref().filter(|slot| slot.instance == version)?;
            slot.accepted.map(|(ballot, value)| (ballot, number, value))
        });
        let Some((_, number, value)) = accepted.max_by_key(|(ballot, ..)| *ballot) else {
            let Wish { nonce, bytes, gone } = *wish;
            let area = self.put(own, bytes)?;
            let crc = crc32c::crc32c(bytes);
            return Ok(Some(Value { nonce, area, bytes: bytes.len() as u64, crc, gone }));
        };
        if number == self.slot {
            return Ok(Some(value));
        }
        let Some(bytes) = self.bytes_of(number, &value)? else { return Ok(None) };
        let area = self.put(own, &bytes)?;
        Ok(Some(Value { area, ..value }))
    }

    /// Writes bytes to an area that this slot does not name; which.
    fn put(&self, own: &Slot, bytes: &[u8]) -> Result<u64, StoreError> {
        let named = |area| {
            own.value.is_some_and(|value| value.area == area)
                || own.accepted.is_some_and(|(_, value)| value.area == area)
        };
        // Two are named at most, and there are three.
        let area = (0..AREAS).find(|area| !named(*area)).unwrap_or(AREAS - 1);
        assert!(!named(area), "an area that is named is never written");
        let (at, _) = self.header.area(self.region, self.slot, area);
        if !bytes.is_empty() {
            self.medium.write(at, bytes)?;
        }
        Ok(area)
    }

    fn say(&self, own: &mut Slot) -> Result<(), StoreError> {
        own.seq += 1;
        assert!(own.instance <= own.decided + 1, "no version is skipped");
        layout::write_slot(self.medium, self.region, self.slot, own)
    }
}
