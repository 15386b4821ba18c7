use dhcproto::v4::Flags;
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::prelude::prop_assert;
use proptest::prelude::proptest;

use super::*;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

fn leases() -> Leases {
    let lease = Lease { address: ADDRESS, hostname: "vm1".to_owned() };
    Leases {
        subnet: "10.77.0.0/24".parse().unwrap(),
        domain: "muster.internal".to_owned(),
        mtu: 1400,
        by_mac: BTreeMap::from([(MacAddr::from_bytes(MAC), lease)]),
    }
}

fn request(kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_xid(0x1234_5678).set_chaddr(&MAC);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message
}

fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

fn ask(message: &Message) -> Answer {
    answer(&leases(), &bytes(message)).unwrap()
}

fn read(answer: &Answer) -> Message {
    let reply = answer.reply.as_ref().expect("a reply");
    assert!(reply.bytes.len() >= REPLY_BYTES_MIN);
    Message::decode(&mut Decoder::new(&reply.bytes)).unwrap()
}

#[test]
fn a_client_without_address_is_offered_its_own_by_broadcast() {
    let answer = ask(&request(MessageType::Discover));
    let offer = read(&answer);
    assert_eq!(answer.reply.unwrap().to, None);
    assert_eq!(answer.event, None, "an offer is not yet taken");
    assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
    assert_eq!((offer.yiaddr(), offer.xid()), (ADDRESS, 0x1234_5678));
    assert_eq!(offer.chaddr(), MAC);
    let has = |option: DhcpOption| {
        assert_eq!(offer.opts().get(OptionCode::from(&option)), Some(&option));
    };
    has(DhcpOption::Router(vec![GATEWAY]));
    has(DhcpOption::DomainNameServer(vec![GATEWAY]));
    has(DhcpOption::ServerIdentifier(GATEWAY));
    has(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
    has(DhcpOption::InterfaceMtu(1400));
    has(DhcpOption::Hostname("vm1".to_owned()));
    has(DhcpOption::DomainName("muster.internal".to_owned()));
    has(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
}

#[test]
fn a_request_is_granted_refused_or_left_to_another_server() {
    let mut selecting = request(MessageType::Request);
    selecting.opts_mut().insert(DhcpOption::RequestedIpAddress(ADDRESS));
    selecting.opts_mut().insert(DhcpOption::ServerIdentifier(GATEWAY));
    let granted = ask(&selecting);
    assert_eq!(read(&granted).opts().msg_type(), Some(MessageType::Ack));
    let mac = MacAddr::from_bytes(MAC);
    assert_eq!(granted.event, Some(LeaseEvent::Taken { mac, address: ADDRESS }));

    let other = Ipv4Addr::new(10, 77, 0, 254);
    selecting.opts_mut().insert(DhcpOption::ServerIdentifier(other));
    assert_eq!(ask(&selecting), Answer::default());

    let mut wrong = request(MessageType::Request);
    wrong.set_ciaddr(other);
    let refused = ask(&wrong);
    let nak = read(&refused);
    assert_eq!(nak.opts().msg_type(), Some(MessageType::Nak));
    assert!(nak.yiaddr().is_unspecified());
    assert_eq!((refused.reply.unwrap().to, refused.event), (None, None));
}

#[test]
fn a_renewing_client_is_answered_where_it_is() {
    let mut renewing = request(MessageType::Request);
    renewing.set_ciaddr(ADDRESS);
    assert_eq!(ask(&renewing).reply.unwrap().to, Some(ADDRESS));
    renewing.set_flags(Flags::default().set_broadcast());
    assert_eq!(ask(&renewing).reply.unwrap().to, None);
}

#[test]
fn inform_release_and_decline_have_their_own_answers() {
    let mut inform = request(MessageType::Inform);
    assert_eq!(ask(&inform), Answer::default());
    inform.set_ciaddr(ADDRESS);
    let ack = read(&ask(&inform));
    assert!(ack.yiaddr().is_unspecified());
    assert_eq!(ack.opts().get(OptionCode::AddressLeaseTime), None);
    let mac = MacAddr::from_bytes(MAC);
    let released = ask(&request(MessageType::Release));
    assert_eq!(released, Answer { reply: None, event: Some(LeaseEvent::Released { mac }) });
    let declined = ask(&request(MessageType::Decline));
    let event = LeaseEvent::Declined { mac, address: ADDRESS };
    assert_eq!(declined, Answer { reply: None, event: Some(event) });
}

#[test]
fn strangers_relays_servers_and_odd_hardware_get_nothing() {
    let mut stranger = request(MessageType::Discover);
    stranger.set_chaddr(&[0x52, 0x54, 0, 0, 0, 9]);
    assert_eq!(ask(&stranger), Answer::default());

    let mut relayed = request(MessageType::Discover);
    relayed.set_giaddr(GATEWAY);
    let mut server = request(MessageType::Offer);
    server.set_opcode(Opcode::BootReply);
    let mut long_address = bytes(&request(MessageType::Discover));
    long_address[HLEN_OFFSET] = 255;
    for packet in [bytes(&relayed), bytes(&server), long_address] {
        assert_eq!(answer(&leases(), &packet), Err(DhcpError::NotAClient));
    }
    let bootp = bytes(&Message::default().set_chaddr(&MAC).clone());
    assert_eq!(answer(&leases(), &bootp), Err(DhcpError::Malformed));
    assert_eq!(answer(&leases(), &[]), Err(DhcpError::NotAClient));
}

#[test]
fn an_option_that_breaks_the_decoder_does_not_reach_it() {
    let mut packet = bytes(&request(MessageType::Discover));
    assert_eq!(packet.pop(), Some(OPTION_END));
    // Client FQDN, too short for its three fixed bytes.
    packet.extend_from_slice(&[81, 1, 0, OPTION_END]);
    assert!(answer(&leases(), &packet).unwrap().reply.is_some());
    // Twice the message type: which one would hold?
    packet.pop();
    packet.extend_from_slice(&[53, 1, 3, OPTION_END]);
    assert_eq!(answer(&leases(), &packet), Err(DhcpError::Malformed));
}

proptest! {
    /// Nothing a guest can send makes the responder panic, or answer more than one frame.
    #[test]
    fn any_bytes_are_survived(packet in vec(any::<u8>(), 0..1_500)) {
        let _ = answer(&leases(), &packet);
    }

    /// The same for packets that are requests up to some damage.
    #[test]
    fn damaged_requests_are_survived(
        kind in 1_u8..9,
        options in vec(any::<u8>(), 0..300),
        damage in vec((0_usize..560, any::<u8>()), 0..8),
        cut in 0_usize..600,
    ) {
        let mut packet = bytes(&request(MessageType::from(kind)));
        packet.pop();
        packet.extend_from_slice(&options);
        for (at, byte) in damage {
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        packet.truncate(packet.len().saturating_sub(cut));
        if let Ok(Answer { reply: Some(reply), .. }) = answer(&leases(), &packet) {
            prop_assert!(reply.bytes.len() < 600);
            prop_assert!(Message::decode(&mut Decoder::new(&reply.bytes)).is_ok());
        }
    }
}
