//! A proxy for HTTP, as companies have it between their network and others: it takes requests with whole
//! addresses, tunnels by `CONNECT`, wants a password, and alone knows where foreign names are.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of this")]

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A running proxy. Dropping it ends it.
pub struct ForwardProxy {
    address: SocketAddr,
    password: String,
    asked: watch::Sender<Vec<String>>,
    task: JoinHandle<()>,
}

impl ForwardProxy {
    /// One that knows these names, as `host:port`, and connects for them to these addresses.
    pub async fn start(password: &str, names: &[(&str, String)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a local port is free");
        let address = listener.local_addr().expect("the port is known");
        let asked = watch::Sender::new(Vec::new());
        let wanted = format!("Basic {}", STANDARD.encode(format!("joe:{password}")));
        let names = names.iter().map(|(name, to)| ((*name).to_owned(), to.clone()));
        let names = Arc::new(names.collect::<BTreeMap<_, _>>());
        let record = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (wanted, names, record) = (wanted.clone(), names.clone(), record.clone());
                // An error is an end like any other.
                tokio::spawn(async move { serve(client, &wanted, &names, &record).await.ok() });
            }
        });
        Self { address, password: password.to_owned(), asked, task }
    }

    /// Its address, with the password.
    pub fn url(&self) -> String {
        format!("http://joe:{}@{}", self.password, self.address)
    }

    /// What it was asked to connect to so far, as `host:port`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.borrow().clone()
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    client: TcpStream,
    wanted: &str,
    names: &BTreeMap<String, String>,
    record: &watch::Sender<Vec<String>>,
) -> io::Result<()> {
    let mut client = BufReader::new(client);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await?;
        if line.trim_end().is_empty() {
            break;
        }
        head.push(line);
    }
    let request: Vec<_> = head.first().map(String::as_str).unwrap_or_default().split(' ').collect();
    let [method, target, version] = request[..] else { return Ok(()) };
    let (authority, path) = match target.strip_prefix("http://") {
        Some(address) => address.split_at(address.find('/').unwrap_or(address.len())),
        None => (target, ""),
    };
    let name =
        if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    record.send_modify(|asked| asked.push(name.clone()));
    let is_wanted = |line: &String| {
        let header = line.split_once(':');
        header.is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("proxy-authorization") && value.trim() == wanted
        })
    };
    let refusal = match names.get(&name) {
        _ if !head.iter().any(is_wanted) => Some("407 Proxy Authentication Required"),
        None => Some("502 Bad Gateway"),
        Some(_) => None,
    };
    if let Some(status) = refusal {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return client.get_mut().write_all(answer.as_bytes()).await;
    }
    let mut server = TcpStream::connect(&names[&name]).await?;
    if method == "CONNECT" {
        client.get_mut().write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        let first = format!("{method} {path} {version}");
        // One request a connection, so that the next one is seen as well.
        let rest = head[1..].iter().filter(|line| !line.to_lowercase().starts_with("proxy-"));
        let rest: String = rest.map(String::as_str).collect();
        server.write_all(format!("{first}{rest}connection: close\r\n\r\n").as_bytes()).await?;
    }
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}
