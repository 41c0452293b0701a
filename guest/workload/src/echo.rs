//! UDP echo on port 7: each datagram comes back as it is. A client measures network gaps with it.

use std::net::UdpSocket;

use crate::system;

/// Above the burner and the HTTP threads: what is measured is the network, not this guest's scheduler.
const NICE: i32 = -10;

pub fn run() {
    system::set_thread_nice(NICE);
    let socket = UdpSocket::bind("[::]:7").or_else(|_| UdpSocket::bind("0.0.0.0:7"));
    let socket = socket.expect("nothing else in the guest uses port 7");
    let mut datagram = [0; 2048];
    loop {
        // Errors here are those of earlier answers (port unreachable): the next datagram is unaffected.
        if let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..length], from);
        }
    }
}
