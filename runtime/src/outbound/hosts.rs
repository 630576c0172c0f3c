//! Which hosts may be called: what an operator allows and a package asks for, in the same words.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name that DNS has.
const NAME_BYTES_MAX: usize = 253;

/// Most hosts that one list names.
const HOSTS_MAX: usize = 64;

/// A host and a port: `api.example.com`, `*.example.org:8443` for all names below one, `10.0.0.7:9000` for exactly this
/// address, and `*` for every name. Without a port it is 80 for `http` and 443 for `https`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    host: PatternHost,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PatternHost {
    /// Every name, no address.
    AnyName,
    /// All names below this one, without it.
    Below(String),
    Name(String),
    Address(IpAddr),
}

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: TargetHost,
    /// The port, the scheme's own where the request names none.
    pub port: u16,
    /// Whether it is `https`.
    pub tls: bool,
}

/// A host as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetHost {
    /// In lower case, without a dot at its end.
    Name(String),
    /// Not resolved: this is where the connection goes.
    Address(IpAddr),
}

/// A text that names no host.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "'{0}' is not a host: use a name like api.example.com, *.example.org for the names below one, * for all names, or an \
     IP address, each with or without :PORT"
)]
pub struct HostError(String);

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<HostPattern, HostError> {
        let wrong = || HostError(text.to_owned());
        let (host, port) = split_port(text).ok_or_else(wrong)?;
        let host = match host.strip_prefix("*.") {
            _ if host == "*" => PatternHost::AnyName,
            Some(below) => PatternHost::Below(name(below).ok_or_else(wrong)?),
            None => match parse_host(host).ok_or_else(wrong)? {
                TargetHost::Name(name) => PatternHost::Name(name),
                TargetHost::Address(address) => PatternHost::Address(address),
            },
        };
        Ok(HostPattern { host, port })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            PatternHost::AnyName => f.write_str("*")?,
            PatternHost::Below(name) => write!(f, "*.{name}")?,
            PatternHost::Name(name) => f.write_str(name)?,
            PatternHost::Address(IpAddr::V6(address)) if self.port.is_some() => write!(f, "[{address}]")?,
            PatternHost::Address(address) => write!(f, "{address}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl HostPattern {
    /// Whether a request may go there.
    pub fn allows(&self, target: &Target) -> bool {
        let port = self.port.unwrap_or(default_port(target.tls));
        let host = match (&self.host, &target.host) {
            (PatternHost::AnyName, TargetHost::Name(_)) => true,
            (PatternHost::Below(above), TargetHost::Name(name)) => is_below(name, above),
            (PatternHost::Name(known), TargetHost::Name(name)) => known == name,
            (PatternHost::Address(known), TargetHost::Address(address)) => known == address,
            _ => false,
        };
        host && port == target.port
    }

    /// Whether all that `other` allows is allowed by this.
    fn covers(&self, other: &HostPattern) -> bool {
        let host = match (&self.host, &other.host) {
            (PatternHost::AnyName, PatternHost::Address(_)) => false,
            (PatternHost::AnyName, _) => true,
            (PatternHost::Below(above), PatternHost::Name(name)) => is_below(name, above),
            (PatternHost::Below(above), PatternHost::Below(name)) => name == above || is_below(name, above),
            (own, asked) => own == asked,
        };
        host && self.port == other.port
    }
}

/// Hosts, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPatterns(Vec<HostPattern>);

impl HostPatterns {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request may go there.
    pub fn allow(&self, target: &Target) -> bool {
        self.0.iter().any(|pattern| pattern.allows(target))
    }

    /// One of `asked` that goes beyond these.
    pub fn beyond<'a>(&self, asked: &'a HostPatterns) -> Option<&'a HostPattern> {
        asked.0.iter().find(|asked| !self.0.iter().any(|own| own.covers(asked)))
    }

    fn of(texts: &[&str]) -> Result<HostPatterns, String> {
        if texts.len() > HOSTS_MAX {
            return Err(format!("{} hosts are named; at most {HOSTS_MAX} may be", texts.len()));
        }
        let patterns: Result<_, HostError> = texts.iter().map(|text| text.trim().parse()).collect();
        patterns.map(HostPatterns).map_err(|error| error.to_string())
    }
}

/// Separated by commas; an empty text names none.
impl FromStr for HostPatterns {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPatterns, String> {
        if text.trim().is_empty() {
            return Ok(HostPatterns::default());
        }
        HostPatterns::of(&text.split(',').collect::<Vec<_>>())
    }
}

impl fmt::Display for HostPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pattern) in self.0.iter().enumerate() {
            write!(f, "{}{pattern}", if index > 0 { ", " } else { "" })?;
        }
        if self.0.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

impl Serialize for HostPatterns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(HostPattern::to_string))
    }
}

/// A list of texts.
impl<'de> Deserialize<'de> for HostPatterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HostPatterns, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        HostPatterns::of(&texts.iter().map(String::as_str).collect::<Vec<_>>()).map_err(D::Error::custom)
    }
}

impl Target {
    /// Whom a request is for by the authority of its address; none where that names no host, or says as whom to log in.
    pub fn of(authority: &str, tls: bool) -> Option<Target> {
        let (host, port) = split_port(authority)?;
        Some(Target { host: parse_host(host)?, port: port.unwrap_or(default_port(tls)), tls })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            TargetHost::Name(name) => write!(f, "{name}:{}", self.port),
            TargetHost::Address(address) => std::net::SocketAddr::new(*address, self.port).fmt(f),
        }
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

/// A host, perhaps in brackets, and its port. An IPv6 address with a port needs the brackets.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    if text.parse::<IpAddr>().is_ok() {
        return Some((text, None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten();
    let port = match port {
        Some(port) => Some(digits(port).filter(|port| *port != 0)?),
        None => None,
    };
    Some((host, port))
}

fn parse_host(host: &str) -> Option<TargetHost> {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return Some(TargetHost::Address(IpAddr::V6(address.parse().ok()?).to_canonical()));
    }
    match host.parse::<IpAddr>() {
        Ok(address) => Some(TargetHost::Address(address.to_canonical())),
        Err(_) => name(host).map(TargetHost::Name),
    }
}

/// A name of DNS. One that ends in a number is none: resolvers read `127.1` and `0x7f000001` as addresses.
fn name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(plain) && !label.starts_with('-') && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit());
    (text.len() <= NAME_BYTES_MAX && text.split('.').all(is_label) && !is_number).then_some(text)
}

fn is_below(name: &str, above: &str) -> bool {
    name.strip_suffix(above).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(text: &str) -> HostPatterns {
        text.parse().unwrap()
    }

    fn target(authority: &str, tls: bool) -> Target {
        Target::of(authority, tls).unwrap()
    }

    #[test]
    fn a_name_is_allowed_exactly_and_a_star_below_it() {
        let allowed = patterns("api.example.com, *.example.org:8443, 10.0.0.7:9000");
        for (authority, tls, allows) in [
            ("api.example.com", true, true),
            ("API.Example.com.", false, true),
            ("api.example.com:443", true, true),
            ("api.example.com:443", false, false),
            ("api.example.com:8443", true, false),
            ("xapi.example.com", true, false),
            ("a.api.example.com", true, false),
            ("a.example.org:8443", true, true),
            ("a.b.example.org:8443", false, true),
            ("example.org:8443", true, false),
            ("badexample.org:8443", true, false),
            ("10.0.0.7:9000", false, true),
            ("[::ffff:10.0.0.7]:9000", false, true),
            ("10.0.0.7:80", false, false),
            ("10.0.0.8:9000", false, false),
        ] {
            assert_eq!(allowed.allow(&target(authority, tls)), allows, "{authority} tls={tls}");
        }
        let any = patterns("*");
        assert!(any.allow(&target("anything.test", true)));
        assert!(!any.allow(&target("93.184.216.34", true)), "an address is allowed by its own name alone");
        assert!(!HostPatterns::default().allow(&target("a.test", true)));
    }

    #[test]
    fn a_package_may_ask_for_what_the_operator_allows_and_no_more() {
        for (own, asked, beyond) in [
            ("*", "api.example.com, *.a.test", None),
            ("*", "127.0.0.1", Some("127.0.0.1")),
            ("*", "api.example.com:81", Some("api.example.com:81")),
            ("*.a.test", "b.a.test, *.b.a.test, *.a.test", None),
            ("*.a.test", "a.test", Some("a.test")),
            ("a.test", "*.a.test", Some("*.a.test")),
            ("", "a.test", Some("a.test")),
            ("[::1]:90", "[::1]:90", None),
        ] {
            let (own, asked) = (patterns(own), patterns(asked));
            assert_eq!(own.beyond(&asked).map(HostPattern::to_string).as_deref(), beyond, "{own} {asked}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused_by_name() {
        for bad in ["", "a..b", "-a.test", "a b", "*.*.a", "a.*", "http://a.test", "u@a.test", "a.test:0", "a.test:x"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
        for tricky in ["127.1", "2130706433", "0x7f000001", "a.0x7f", "u@a.test", "[::1", "[fe80::1%25eth0]", "a:b:80"]
        {
            assert!(Target::of(tricky, false).is_none(), "{tricky}");
        }
        assert!("a.test,b c".parse::<HostPatterns>().unwrap_err().contains("'b c' is not a host"));
    }

    #[test]
    fn a_list_prints_as_it_is_read() {
        let text = "api.example.com, *.example.org:8443, *, [::1]:8080, ::1, 10.0.0.7";
        assert_eq!(patterns(text).to_string(), text);
    }
}
