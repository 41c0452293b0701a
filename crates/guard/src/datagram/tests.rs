//! What comes through, and what does not.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use crate::core::id::{Epoch, HostId};
use crate::core::message::Message;
use crate::core::time::BootInstant;
use crate::datagram::{Channels, DATAGRAM_MAX, HostKey, PublicKey, Refused, Sealed};

const A: HostId = HostId::from_u128(0xa);
const B: HostId = HostId::from_u128(0xb);
const C: HostId = HostId::from_u128(0xc);

/// Three hosts that know each other.
fn three() -> [Channels; 3] {
    let hosts = [A, B, C];
    let keys = hosts.map(|_| HostKey::generate().unwrap());
    let public: BTreeMap<HostId, PublicKey> =
        hosts.into_iter().zip(&keys).map(|(host, key)| (host, key.public().unwrap())).collect();
    let mut session = 0;
    keys.map(|key| {
        let mut channels = Channels::new(hosts[session as usize], key, 7 + session);
        session += 1;
        channels.set_peers(&public).unwrap();
        channels
    })
}

fn every_message() -> Vec<Message> {
    let (epoch, seq, tau, host) = (Epoch(3), u64::MAX, BootInstant(5), C);
    vec![
        Message::Renew { epoch, seq, promise: Duration::from_secs(7) },
        Message::RenewAck { epoch, seq },
        Message::RenewNack { epoch, seq, fenced: Epoch(4) },
        Message::Release { epoch },
        Message::Fence { host, epoch, tau },
        Message::FenceAck { host, epoch, tau },
        Message::Query { host, tau },
        Message::LastSeen { host, tau, epoch, age: Duration::from_nanos(1) },
    ]
}

fn sealed(from: &mut Channels, to: HostId) -> Vec<Sealed> {
    every_message().iter().map(|message| from.seal(to, message).unwrap()).collect()
}

#[test]
fn every_message_arrives_as_it_was_and_is_short() {
    let [mut a, mut b, _] = three();
    for message in every_message() {
        let datagram = a.seal(B, &message).unwrap();
        assert!(datagram.len() <= DATAGRAM_MAX);
        assert_eq!(b.open(&datagram), Ok((A, message)));
    }
}

#[test]
fn what_comes_over_both_paths_counts_once() {
    let [mut a, mut b, _] = three();
    let datagram = a.seal(B, &every_message()[0]).unwrap();
    assert!(b.open(&datagram).is_ok());
    assert_eq!(b.open(&datagram), Err(Refused::Repeated));
}

#[test]
fn a_voter_cannot_speak_for_another() {
    let [mut a, mut b, mut c] = three();
    let mut forged = c.seal(B, &every_message()[1]).unwrap();
    forged[1..17].copy_from_slice(A.0.as_bytes());
    assert_eq!(b.open(&forged), Err(Refused::Forged));
    let for_c = a.seal(C, &every_message()[1]).unwrap();
    assert_eq!(b.open(&for_c), Err(Refused::NotForUs));
    let mut redirected = for_c;
    redirected[17..33].copy_from_slice(B.0.as_bytes());
    assert_eq!(b.open(&redirected), Err(Refused::Forged));
    let mut reflected = a.seal(B, &every_message()[1]).unwrap();
    reflected[1..17].copy_from_slice(B.0.as_bytes());
    reflected[17..33].copy_from_slice(A.0.as_bytes());
    assert_eq!(a.open(&reflected), Err(Refused::Forged), "each direction has its own key");
}

#[test]
fn a_host_whose_key_changed_is_a_stranger_until_it_is_told() {
    let [mut a, mut b, _] = three();
    let datagram = a.seal(B, &every_message()[0]).unwrap();
    let other = HostKey::generate().unwrap().public().unwrap();
    b.set_peers(&BTreeMap::from([(A, other)])).unwrap();
    assert_eq!(b.open(&datagram), Err(Refused::Forged));
    b.set_peers(&BTreeMap::new()).unwrap();
    assert_eq!(b.open(&datagram), Err(Refused::Stranger));
    assert_eq!(b.seal(A, &every_message()[0]), None);
}

#[test]
fn a_truncated_or_lengthened_datagram_is_refused() {
    let [mut a, mut b, _] = three();
    for datagram in sealed(&mut a, B) {
        for length in 0..datagram.len() {
            assert!(b.open(&datagram[..length]).is_err(), "{length}");
        }
        let mut longer = datagram.clone();
        longer.push(0);
        assert!(b.open(&longer).is_err());
        longer.resize(2000, 0);
        assert_eq!(b.open(&longer), Err(Refused::Form));
        assert!(b.open(&datagram).is_ok(), "nothing of that has changed anything");
    }
}

#[test]
fn a_flood_of_forgeries_changes_nothing() {
    let [mut a, mut b, _] = three();
    let real = a.seal(B, &every_message()[0]).unwrap();
    let mut forged = real.clone();
    for n in 0..20_000u64 {
        // New sessions and numbers without end: none may push out what is remembered.
        forged[33..41].copy_from_slice(&n.to_be_bytes());
        forged[41..49].copy_from_slice(&(u64::MAX - n).to_be_bytes());
        assert_eq!(b.open(&forged), Err(Refused::Forged));
        forged[1..17].copy_from_slice(HostId::from_u128(u128::from(n) << 32).0.as_bytes());
        assert_eq!(b.open(&forged), Err(Refused::Stranger));
        forged[1..17].copy_from_slice(A.0.as_bytes());
    }
    assert!(b.open(&real).is_ok());
}

#[test]
fn a_key_survives_its_text_and_shows_nothing() {
    let key = HostKey::generate().unwrap();
    let again = HostKey::from_text(&format!("{}\n", key.to_text().unwrap())).unwrap();
    assert_eq!(again.public(), key.public());
    assert_eq!(format!("{key:?}"), "HostKey(secret)");
    for wrong in ["", "12", &"g".repeat(64), &"é".repeat(32)] {
        assert!(HostKey::from_text(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_public_key_of_no_use_is_refused() {
    let key = HostKey::generate().unwrap();
    let mut channels = Channels::new(A, key, 1);
    // The point of order one: everybody could know the secret agreed with it.
    assert!(channels.set_peers(&BTreeMap::from([(B, PublicKey([0; 32]))])).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_body_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Some(message) = super::body::read(&bytes) {
            let mut again = Vec::new();
            super::body::write(&message, &mut again);
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn a_datagram_with_any_byte_changed_is_refused(which in 0usize..8, at in 0usize..128, by in 1u8..=255) {
        let [mut a, mut b, _] = three();
        let mut datagram = sealed(&mut a, B).swap_remove(which);
        let at = at % datagram.len();
        datagram[at] ^= by;
        prop_assert!(b.open(&datagram).is_err());
    }
}
