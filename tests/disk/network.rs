//! What the steps of a build reach: with the rules of `image-builder build-network`, the internet and what the operator
//! lists, and nothing else. The engine has a network of its own, with another one behind it that stands for the rest
//! of the world.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::engine::DEBIAN;
use crate::support::own_engine::OwnEngine;
use crate::support::worker::BINARY;

/// The addresses of the two networks' ends.
const MACHINE: &str = "100.64.9.1";
const WORLD: &str = "100.64.9.2";
/// The default of `docker0`.
const GATEWAY: &str = "172.17.0.1";
/// Another step's, on the same bridge.
const NEIGHBOUR: &str = "172.17.99.9";
/// Stands for a server of the internet: no address here leads there.
const PUBLIC: &str = "93.184.216.34";
const RESOLVER: &str = "10.9.8.7";
const ALLOWED: &str = "10.20.0.5";
const METADATA: &str = "169.254.169.254";
const GATEWAY_6: &str = "fd00:17::1";
const PUBLIC_6: &str = "2606:4700::1111";
const PRIVATE_6: &str = "fd00:99::1";

/// A network of the kernel's, and nothing in it. It is gone with this value.
struct Network(String);

impl Network {
    fn new(hint: &str) -> Self {
        let name = format!("ib-{}-{hint}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        Self(name)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Runs `ip` in it.
    fn ip(&self, arguments: &str) {
        run(Command::new("ip").args(["-n", &self.0]).args(arguments.split_whitespace()));
    }

    /// Listens at an address of it.
    fn listen(&self, at: &str) -> TcpListener {
        let (at, network) = (at.parse::<SocketAddr>().expect("an address"), self.path());
        // The thread alone goes there, and what it opens stays there.
        let listening = std::thread::spawn(move || {
            enter(&network);
            TcpListener::bind(at)
        });
        listening.join().expect("it does not panic").unwrap_or_else(|error| panic!("{at}: {error}"))
    }

    /// Whether somebody at this address answers who asks from here.
    fn connects(&self, to: &str) -> bool {
        let (to, network) = (to.parse::<SocketAddr>().expect("an address"), self.path());
        let connecting = std::thread::spawn(move || {
            enter(&network);
            TcpStream::connect_timeout(&to, Duration::from_secs(4)).is_ok()
        });
        connecting.join().expect("it does not panic")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Takes this thread into a network.
#[allow(unsafe_code, reason = "no crate at hand has this call for a thread")]
fn enter(network: &Path) {
    let file = std::fs::File::open(network).expect("the network is there");
    // SAFETY: a call of the kernel with a descriptor that is open.
    let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let ended = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{command:?}; it needs root: {stderr}");
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

/// An engine on a machine of its own, and the world around it.
struct Place {
    engine: OwnEngine,
    machine: Network,
    world: Network,
    /// Where another step is, on the same bridge.
    neighbour: Network,
    /// Kept to listen.
    listeners: Vec<TcpListener>,
}

impl Place {
    fn new() -> Self {
        let [machine, world, neighbour] = ["machine", "world", "step"].map(Network::new);
        for network in [&machine, &world, &neighbour] {
            network.ip("link set lo up");
        }
        machine.ip(&format!("link add out type veth peer name in netns {}", world.0));
        machine.ip(&format!("address add {MACHINE}/24 dev out"));
        machine.ip("link set out up");
        world.ip(&format!("address add {WORLD}/24 dev in"));
        world.ip("link set in up");
        machine.ip(&format!("route add default via {WORLD}"));
        for address in [PUBLIC, RESOLVER, ALLOWED, METADATA] {
            world.ip(&format!("address add {address}/32 dev lo"));
        }
        let engine = OwnEngine::in_network(&machine.path());
        engine.load(DEBIAN);
        machine.ip(&format!("link add other type veth peer name eth0 netns {}", neighbour.0));
        machine.ip("link set other master docker0 up");
        neighbour.ip(&format!("address add {NEIGHBOUR}/16 dev eth0"));
        neighbour.ip("link set eth0 up");
        let listen = |network: &Network, at: &[&str]| {
            at.iter().map(|at| network.listen(at)).collect::<Vec<_>>()
        };
        let mut listeners = listen(&machine, &["0.0.0.0:5672"]);
        listeners.extend(listen(&neighbour, &[&format!("{NEIGHBOUR}:80")]));
        let of_world = [PUBLIC, RESOLVER, ALLOWED, METADATA].map(|address| format!("{address}:80"));
        listeners.extend(of_world.iter().map(|at| world.listen(at)));
        listeners.push(world.listen(&format!("{RESOLVER}:53")));
        let mut place = Self { engine, machine, world, neighbour, listeners };
        place.speak_ipv6();
        place
    }

    /// Gives all of them addresses of IPv6, which engines leave to whoever wants it.
    fn speak_ipv6(&mut self) {
        let forward = "/proc/sys/net/ipv6/conf/all/forwarding";
        let path = self.machine.path();
        let turned_on = std::thread::spawn(move || {
            enter(&path);
            std::fs::write(forward, "1")
        });
        turned_on.join().expect("it does not panic").expect("root may");
        self.machine.ip(&format!("address add {GATEWAY_6}/64 dev docker0 nodad"));
        self.machine.ip("address add fd00:64::1/64 dev out nodad");
        self.machine.ip("route add default via fd00:64::2");
        self.world.ip("address add fd00:64::2/64 dev in nodad");
        self.world.ip("route add default via fd00:64::1");
        self.neighbour.ip("address add fd00:17::9/64 dev eth0 nodad");
        self.neighbour.ip(&format!("route add default via {GATEWAY_6}"));
        for address in [PUBLIC_6, PRIVATE_6] {
            self.world.ip(&format!("address add {address}/128 dev lo nodad"));
            self.listeners.push(self.world.listen(&format!("[{address}]:80")));
        }
        self.listeners.push(self.machine.listen(&format!("[{GATEWAY_6}]:5672")));
    }

    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("DOCKER_HOST", self.engine.host());
        command.env("BUILDER_ALLOW_CIDR", format!("{ALLOWED}/24"));
        command.env("RABBITMQ_URI", "amqp://guest:guest@localhost:5672/%2f");
        command
    }

    /// What a step of a build says of these places: whether they answer.
    fn seen_by_a_step(&self, places: &[&str]) -> BTreeMap<String, bool> {
        let folder = tempfile::tempdir().expect("a directory");
        let step = "RUN for at in $AT; do if timeout 4 bash -c \"exec 3<>/dev/tcp/$at\" 2>/dev/null; \
                    then echo \"answers $at\"; else echo \"silent $at\"; fi & done; wait";
        let dockerfile = format!("FROM {DEBIAN}\nARG AT RUN_ID\n{step}\n");
        std::fs::write(folder.path().join("Dockerfile"), dockerfile).expect("written");
        let places = format!("AT={}", places.join(" "));
        let id = format!("RUN_ID={}", uuid::Uuid::new_v4());
        let arguments =
            ["build", ".", "--progress", "plain", "--build-arg", &places, "--build-arg", &id];
        let mut build = self.program(&arguments);
        let ended = build.current_dir(folder.path()).output().expect("the program starts");
        let text = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{text}");
        let said = text.lines().flat_map(|line| {
            let found = line.rfind("answers ").or_else(|| line.rfind("silent "))?;
            let (what, at) = line[found..].split_once(' ')?;
            Some((at.trim().to_owned(), what == "answers"))
        });
        said.filter(|(at, _)| !at.contains('$')).collect()
    }

    /// The doctor's finding of what a step reaches.
    fn finding(&self) -> (String, String) {
        let folder = tempfile::tempdir().expect("a directory");
        let mut doctor = self.program(&["doctor", "--json", "--image", DEBIAN]);
        // Nobody waits for what cannot be reached.
        doctor.env("GITHUB_URL", "http://127.0.0.1:1").env("GITHUB_API_URL", "http://127.0.0.1:1");
        let ended = doctor.current_dir(folder.path()).output().expect("the program starts");
        let told: Value = serde_json::from_slice(&ended.stdout).expect("one object");
        let checks = told["checks"].as_array().expect("a list");
        let found = checks.iter().find(|it| it["check"] == "step reach");
        let found = found.unwrap_or_else(|| panic!("{told:#}"));
        (found["status"].to_string(), format!("{} {}", found["detail"], found["remedy"]))
    }

    /// Loads the rules on the engine's machine.
    fn load_rules(&self) {
        let rules = run(&mut self.program(&["build-network", "--dns", RESOLVER]));
        let network = format!("--net={}", self.machine.path().display());
        let mut nft = Command::new("nsenter")
            .args([&network, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nsenter is installed");
        nft.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("it reads");
        assert!(nft.wait().expect("it ends").success(), "{rules}");
    }
}

#[test]
fn a_step_reaches_the_internet_and_nothing_else() {
    let place = Place::new();
    let good = [format!("{PUBLIC}/80"), format!("{RESOLVER}/53"), format!("{ALLOWED}/80")];
    let bad = [
        format!("{RESOLVER}/80"),
        format!("{METADATA}/80"),
        format!("{GATEWAY}/5672"),
        format!("{MACHINE}/5672"),
        format!("{NEIGHBOUR}/80"),
    ];
    let all: Vec<&str> = good.iter().chain(&bad).map(String::as_str).collect();

    // All of them are there: without the rules a step reaches each.
    let before = place.seen_by_a_step(&all);
    assert_eq!(before.len(), all.len(), "{before:#?}");
    assert!(before.values().all(|answers| *answers), "{before:#?}");
    let of_ipv6 = [
        (format!("[{PUBLIC_6}]:80"), true),
        (format!("[{PRIVATE_6}]:80"), false),
        (format!("[{GATEWAY_6}]:5672"), false),
    ];
    for (at, _) in &of_ipv6 {
        assert!(place.neighbour.connects(at), "{at}");
    }
    let (status, text) = place.finding();
    assert_eq!(status, "\"fail\"", "{text}");
    for part in ["broker (port 5672 of the engine's machine)", "metadata", "build-network"] {
        assert!(text.contains(part), "{text}");
    }

    // Rules that are loaded again take the place of those from before.
    place.load_rules();
    place.load_rules();
    let after = place.seen_by_a_step(&all);
    for (at, answers) in &after {
        assert_eq!(*answers, good.contains(at), "{at}: {after:#?}");
    }
    assert_eq!(after.len(), all.len(), "{after:#?}");
    for (at, answers) in &of_ipv6 {
        assert_eq!(place.neighbour.connects(at), *answers, "{at}");
    }
    let (status, text) = place.finding();
    assert_eq!(status, "\"ok\"", "{text}");
}
