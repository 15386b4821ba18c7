use proptest::collection::vec;
use proptest::prelude::any;
use proptest::prelude::proptest;

use super::*;

const VM1: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);

fn zone() -> Zone {
    Zone {
        subnet: "10.77.0.0/24".parse().unwrap(),
        names: BTreeMap::from([("vm1".to_owned(), vec![VM1]), ("db.prod".to_owned(), vec![VM1])]),
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask(name: &str, kind: RecordType) -> Option<Message> {
    match answer(&zone(), &question(name, kind).to_vec().unwrap()) {
        Verdict::Reply(bytes) => Some(Message::from_vec(&bytes).unwrap()),
        Verdict::Forward => None,
        Verdict::Ignore => panic!("a question is never ignored"),
    }
}

fn code(name: &str, kind: RecordType) -> Option<ResponseCode> {
    ask(name, kind).map(|reply| reply.metadata.response_code)
}

#[test]
fn guests_are_found_by_both_names_whatever_the_case() {
    for name in ["vm1.muster.internal.", "VM1.Muster.INTERNAL.", "vm1.", "db.prod.muster.internal."]
    {
        let reply = ask(name, RecordType::A).unwrap();
        assert_eq!(reply.metadata.id, 7);
        assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
        assert_eq!(reply.answers[0].data, RData::A(A(VM1)), "{name}");
    }
    let reverse = ask("5.0.77.10.in-addr.arpa.", RecordType::PTR).unwrap();
    let RData::PTR(PTR(name)) = &reverse.answers[0].data else { panic!("{reverse:?}") };
    assert!(["vm1.muster.internal.", "db.prod.muster.internal."].contains(&&*name.to_ascii()));
}

#[test]
fn what_is_ours_and_unknown_does_not_exist_and_goes_nowhere() {
    for (name, kind) in [
        ("vm9.muster.internal.", RecordType::A),
        ("a.vm1.muster.internal.", RecordType::A),
        ("vm9.", RecordType::A),
        ("vm9.", RecordType::AAAA),
        ("9.0.77.10.in-addr.arpa.", RecordType::PTR),
    ] {
        let reply = ask(name, kind).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert!(matches!(reply.authorities[0].data, RData::SOA(_)), "for negative caching");
    }
    for (name, kind) in [
        ("vm1.muster.internal.", RecordType::AAAA),
        ("vm1.muster.internal.", RecordType::MX),
        ("muster.internal.", RecordType::A),
    ] {
        let reply = ask(name, kind).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
        assert!(reply.answers.is_empty() && !reply.authorities.is_empty());
    }
}

#[test]
fn everything_else_is_for_the_hosts_resolvers() {
    assert_eq!(ask("www.example.org.", RecordType::A), None);
    assert_eq!(ask("internal.example.org.", RecordType::A), None);
    assert_eq!(ask("5.1.77.10.in-addr.arpa.", RecordType::PTR), None);
    assert_eq!(ask("org.", RecordType::NS), None);
    assert_eq!(ask(".", RecordType::NS), None);
    assert_eq!(code("example.org.", RecordType::AXFR), Some(ResponseCode::Refused));
}

#[test]
fn odd_packets_get_an_error_or_silence() {
    let two = {
        let mut message = question("a.", RecordType::A);
        message.add_query(Query::query(Name::root(), RecordType::A));
        message.to_vec().unwrap()
    };
    let code = |packet: &[u8]| match answer(&zone(), packet) {
        Verdict::Reply(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut cut = question("vm1.", RecordType::A).to_vec().unwrap();
    cut.truncate(14);
    assert_eq!(code(&cut), ResponseCode::FormErr);
    let update = Message::new(7, MessageType::Query, OpCode::Update).to_vec().unwrap();
    assert_eq!(code(&update), ResponseCode::NotImp);
    let reply = Message::response(7, OpCode::Query).to_vec().unwrap();
    assert_eq!(answer(&zone(), &reply), Verdict::Ignore);
    assert_eq!(answer(&zone(), &[1, 2, 3]), Verdict::Ignore);
}

#[test]
fn edns_is_answered_in_kind() {
    let mut with = question("vm1.", RecordType::A);
    with.set_edns(Edns::new());
    let Verdict::Reply(bytes) = answer(&zone(), &with.to_vec().unwrap()) else { panic!() };
    assert!(Message::from_vec(&bytes).unwrap().edns.is_some());
    assert!(ask("vm1.", RecordType::A).unwrap().edns.is_none());
}

proptest! {
    /// Nothing a guest can send makes the responder panic.
    #[test]
    fn any_bytes_are_survived(packet in vec(any::<u8>(), 0..600)) {
        let _ = answer(&zone(), &packet);
        let _ = server_failure(&packet);
    }

    /// The same for questions up to some damage.
    #[test]
    fn damaged_questions_are_survived(damage in vec((0_usize..60, any::<u8>()), 0..6)) {
        let mut packet = question("vm1.muster.internal.", RecordType::A).to_vec().unwrap();
        for (at, byte) in damage {
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        let _ = answer(&zone(), &packet);
        let _ = server_failure(&packet);
    }
}
