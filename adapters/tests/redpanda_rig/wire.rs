//! A connection between one client and the brokers that can be cut, with a TCP proxy for each broker. Brokers tell
//! their clients their addresses, so the proxies replace the ports in the responses.

use std::sync::Arc;

use async_trait::async_trait;
use qi_testkit::bus::contract::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The required host of the brokers. The proxies can replace only the port after the host.
pub(crate) const HOST: &str = "127.0.0.1";

/// Proxies for all brokers, from the view of one client.
#[derive(Debug)]
pub(crate) struct Proxies {
    cut: watch::Sender<bool>,
    /// The proxy tasks, which end when this set is dropped.
    _tasks: JoinSet<()>,
}

/// The port of each broker and the port of its proxy.
type Ports = Arc<Vec<(u16, u16)>>;

impl Proxies {
    /// Starts proxies for brokers on these ports. Returns the proxies and their addresses.
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
impl Connection for Proxies {
    async fn interrupt(&self) {
        self.cut.send_replace(true);
    }

    async fn restore(&self) {
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
            // When one direction ends, both directions end.
            tokio::select! {
                _ = forward_requests(from_client, to_server, cut.clone()) => {}
                _ = forward_responses(from_server, to_client, &ports, cut) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Waits while the connection is cut. Data sent in the meantime arrives late.
async fn wait_until_restored(cut: &mut watch::Receiver<bool>) {
    let _ = cut.wait_for(|cut| !cut).await;
}

async fn forward_requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut cut: watch::Receiver<bool>,
) -> Option<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        wait_until_restored(&mut cut).await;
        to.write_all(&buffer[..count]).await.ok()?;
    }
}

async fn forward_responses(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    ports: &[(u16, u16)],
    mut cut: watch::Receiver<bool>,
) -> Option<()> {
    let mut frame = Vec::new();
    loop {
        // A length of 4 bytes, followed by that number of bytes.
        let length = from.read_u32().await.ok()?;
        frame.clear();
        frame.extend(length.to_be_bytes());
        let read = (&mut from).take(u64::from(length)).read_to_end(&mut frame).await.ok()?;
        if read < length as usize {
            return None;
        }
        replace_ports(&mut frame, ports);
        wait_until_restored(&mut cut).await;
        to.write_all(&frame).await.ok()?;
    }
}

/// Replaces the port of a broker with the port of its proxy, wherever the port follows the host.
fn replace_ports(frame: &mut [u8], ports: &[(u16, u16)]) {
    let host = HOST.as_bytes();
    let mut at = 0;
    // Fetched messages contain no addresses.
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
