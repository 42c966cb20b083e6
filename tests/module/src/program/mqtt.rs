//! As much of an MQTT 3.1.1 server as a module's client needs to connect and to publish.

use std::io::{Read, Write};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// Packets of more are refused.
const LONGEST: usize = 256 << 10;

/// Serves one client until it leaves, and tells `seen` what it sends.
pub(crate) fn serve(stream: &mut (impl Read + Write), seen: impl Fn(&Value) -> Result<()>) -> Result<()> {
    loop {
        let mut first = [0];
        if stream.read(&mut first)? == 0 {
            return Ok(());
        }
        let length = length(stream)?;
        ensure!(length <= LONGEST, "a packet of {length} bytes");
        let mut packet = vec![0; length];
        stream.read_exact(&mut packet).context("half a packet")?;
        let mut rest = packet.as_slice();
        match first[0] >> 4 {
            1 => {
                seen(&connect(&mut rest)?)?;
                stream.write_all(&[0x20, 2, 0, 0])?;
            }
            3 => {
                let topic = text(&mut rest)?;
                if first[0] & 6 != 0 {
                    let id = take(&mut rest, 2)?;
                    stream.write_all(&[0x40, 2, id[0], id[1]])?;
                }
                seen(&json!({ "topic": topic, "payload": String::from_utf8_lossy(rest) }))?;
            }
            8 => {
                let id = take(&mut rest, 2)?;
                stream.write_all(&[0x90, 3, id[0], id[1], 0])?;
            }
            12 => stream.write_all(&[0xd0, 0])?,
            14 => return Ok(()),
            // Acknowledgements of what this never sends, or what is not needed here.
            _ => {}
        }
        stream.flush()?;
    }
}

fn length(stream: &mut impl Read) -> Result<usize> {
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("half a length")?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(length);
        }
    }
    anyhow::bail!("a length of more than four bytes")
}

fn connect(rest: &mut &[u8]) -> Result<Value> {
    ensure!(text(rest)? == "MQTT", "not MQTT 3.1.1");
    let head = take(rest, 4)?;
    let flags = head[1];
    let client = text(rest)?;
    if flags & 0x04 != 0 {
        // The will: its topic and its message.
        let _ = (text(rest)?, text(rest)?);
    }
    let user = if flags & 0x80 != 0 { text(rest)? } else { String::new() };
    let password = if flags & 0x40 != 0 { text(rest)? } else { String::new() };
    Ok(json!({ "client": client, "user": user, "password": password }))
}

fn text(rest: &mut &[u8]) -> Result<String> {
    let length = take(rest, 2)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    Ok(String::from_utf8_lossy(take(rest, length)?).into_owned())
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    ensure!(rest.len() >= length, "a packet ends early");
    let (taken, left) = rest.split_at(length);
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, io};

    struct Wire(io::Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Wire {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Wire {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_client_connects_and_publishes() {
        let connect = b"\x10\x13\0\x04MQTT\x04\xc2\0\x3c\0\x01c\0\x01u\0\x01p";
        let publish = b"\x32\x07\0\x01t\0\x09hi";
        let mut wire = Wire(io::Cursor::new([&connect[..], &publish[..], b"\xe0\0"].concat()), Vec::new());
        let seen = RefCell::new(Vec::new());
        serve(&mut wire, |value| {
            seen.borrow_mut().push(value.clone());
            Ok(())
        })
        .unwrap();
        let expected =
            [json!({ "client": "c", "user": "u", "password": "p" }), json!({ "topic": "t", "payload": "hi" })];
        assert_eq!(*seen.borrow(), expected);
        assert_eq!(wire.1, b"\x20\x02\0\0\x40\x02\0\x09");
    }

    #[test]
    fn a_packet_cut_short_is_an_error() {
        let mut wire = Wire(io::Cursor::new(b"\x10\x05\0\x09MQT".to_vec()), Vec::new());
        assert!(serve(&mut wire, |_| Ok(())).is_err());
    }
}
