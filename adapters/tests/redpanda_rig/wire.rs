//! A wire between one client and the brokers that can be cut: a TCP proxy for each broker. Brokers tell their clients
//! where they are, so the proxies put their own ports into the answers.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use async_trait::async_trait;
use qi_testkit::bus::contract::Wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The host that brokers must have: the proxies can put another port behind it, and nothing else.
pub(crate) const HOST: &str = "127.0.0.1";

/// Proxies for all brokers, as one client sees them.
#[derive(Debug)]
pub(crate) struct Proxies {
    cut: watch::Sender<bool>,
    /// They end with this.
    _tasks: JoinSet<()>,
}

/// A broker's port and its proxy's.
type Ports = Arc<Vec<(u16, u16)>>;

impl Proxies {
    /// Proxies for brokers on these ports, and what the client is told of them.
    pub(crate) async fn of(brokers: &[u16]) -> std::io::Result<(Self, String)> {
        let mut listeners = Vec::new();
        let mut ports = Vec::new();
        for broker in brokers {
            let listener = TcpListener::bind((HOST, 0)).await?;
            ports.push((*broker, listener.local_addr()?.port()));
            listeners.push(listener);
        }
        let addresses: Vec<_> = ports.iter().map(|(_, proxy)| format!("{HOST}:{proxy}")).collect();
        let (cut, state) = watch::channel(false);
        let ports: Ports = Arc::new(ports);
        let mut tasks = JoinSet::new();
        for (listener, broker) in listeners.into_iter().zip(brokers.to_vec()) {
            tasks.spawn(accept(listener, broker, ports.clone(), state.clone()));
        }
        Ok((Self { cut, _tasks: tasks }, addresses.join(",")))
    }
}

#[async_trait]
impl Wire for Proxies {
    async fn cut(&self) {
        self.cut.send_replace(true);
    }

    async fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn accept(listener: TcpListener, broker: u16, ports: Ports, cut: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (ports, cut) = (ports.clone(), cut.clone());
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect((HOST, broker)).await else { return };
            let _ = client.set_nodelay(true).and(server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // One that ends ends both.
            tokio::select! {
                _ = requests(from_client, to_server, cut.clone()) => {}
                _ = answers(from_server, to_client, &ports, cut) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Waits while the wire is cut: what was sent meanwhile arrives late.
async fn whole(cut: &mut watch::Receiver<bool>) {
    let _ = cut.wait_for(|cut| !cut).await;
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut cut: watch::Receiver<bool>,
) -> Option<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        whole(&mut cut).await;
        to.write_all(&buffer[..count]).await.ok()?;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    ports: &[(u16, u16)],
    mut cut: watch::Receiver<bool>,
) -> Option<()> {
    let mut frame = Vec::new();
    loop {
        // A length of 4 bytes, and so many bytes.
        let length = from.read_u32().await.ok()?;
        frame.clear();
        frame.extend(length.to_be_bytes());
        let read = (&mut from).take(u64::from(length)).read_to_end(&mut frame).await.ok()?;
        if read < length as usize {
            return None;
        }
        readdress(&mut frame, ports);
        whole(&mut cut).await;
        to.write_all(&frame).await.ok()?;
    }
}

/// Wherever a broker's host stands before its port, the proxy's port takes its place.
fn readdress(frame: &mut [u8], ports: &[(u16, u16)]) {
    let host = HOST.as_bytes();
    let mut at = 0;
    // Fetched messages are no addresses.
    let end = frame.len().min(64 << 10);
    while let Some(found) = frame[at..end].windows(host.len()).position(|window| window == host) {
        at += found + host.len();
        let Some(port) = frame.get_mut(at..at + 4) else { return };
        for (broker, proxy) in ports {
            if port == u32::from(*broker).to_be_bytes() {
                port.copy_from_slice(&u32::from(*proxy).to_be_bytes());
                break;
            }
        }
    }
}

/// Sends one message to partition 0 of a topic, with a header of this name and one with the name `good`. Names of
/// headers are text in the driver, so that the request is written here: `Produce` version 3.
pub(crate) fn produce_header(address: &str, topic: &str, name: &[u8]) {
    fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
        varint(out, i64::try_from(bytes.len()).unwrap());
        out.extend(bytes);
    }
    let mut record = vec![0, 0, 0];
    varint(&mut record, -1);
    sized(&mut record, b"1");
    varint(&mut record, 2);
    for (name, value) in [(name, b"v"), (b"good".as_slice(), b"w")] {
        sized(&mut record, name);
        sized(&mut record, value);
    }
    let mut records = Vec::new();
    sized(&mut records, &record);
    let now = 1_700_000_000_000_i64.to_be_bytes();
    let attributes = [0_u8; 2].iter().chain(&[0; 4]).chain(&now).chain(&now).copied();
    let producer = [0xff_u8; 8 + 2 + 4].into_iter().chain(1_i32.to_be_bytes());
    let checked: Vec<u8> = attributes.chain(producer).chain(records).collect();
    let mut batch = vec![0_u8; 8];
    batch.extend(u32::try_from(4 + 1 + 4 + checked.len()).unwrap().to_be_bytes());
    batch.extend([0xff, 0xff, 0xff, 0xff, 2]);
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    let mut request = vec![0, 0, 0, 3, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    request.extend(10_000_i32.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
    request.extend(topic.as_bytes());
    request.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    request.extend(u32::try_from(batch.len()).unwrap().to_be_bytes());
    request.extend(batch);
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(&u32::try_from(request.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&request).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    // Correlation, one topic with its name, one partition with its number, the error.
    let at = 4 + 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(answer[at..at + 2], [0, 0], "the broker refused the message");
}

/// A number as the log has it: zigzag, seven bits in a byte.
fn varint(out: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while rest > 0x7f {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    })
}
