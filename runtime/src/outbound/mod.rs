//! Requests that guests send to other hosts: to which they may, and the connections.
//!
//! A package names the hosts that it calls in its manifest (`[grants]`), and the operator those that packages may ask for
//! at all (`outbound_hosts`, none by default). A request goes only to a host that is named by both. Its name is resolved
//! once, every address that it has must be public, and the connection goes to one of these addresses. An address itself
//! is called only where both name exactly it: so an operator may let packages call what lies in the own network.

mod addresses;
mod connector;
mod hosts;

use std::fmt;
use std::sync::Arc;

pub use self::connector::{ConnectError, Connection, Connector};
pub use self::hosts::{HostPattern, HostPatterns, Target};

/// What a server allows its packages.
pub struct Outbound {
    allowed: HostPatterns,
    connector: Arc<Connector>,
}

/// What a package may call.
#[derive(Clone)]
pub struct Grant {
    /// The hosts.
    pub hosts: Arc<HostPatterns>,
    /// Makes the connections.
    pub connector: Arc<Connector>,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grant").field(&self.hosts).finish()
    }
}

impl Outbound {
    /// Lets packages ask for these hosts. Reads the system's certificates if there are any. Blocks.
    pub fn new(allowed: HostPatterns) -> Outbound {
        let connector = if allowed.is_empty() { Connector::without_tls() } else { Connector::of_system() };
        Outbound { allowed, connector: Arc::new(connector) }
    }

    /// Grants a package the hosts that it asks for; none where it asks for none.
    ///
    /// # Errors
    /// A sentence for the package's author: which host is not allowed here.
    pub fn grant(&self, asked: &HostPatterns) -> Result<Option<Grant>, String> {
        if let Some(host) = self.allowed.beyond(asked) {
            return Err(format!(
                "the package asks to call '{host}' (grants.http of its manifest), which this server does not allow; \
                 it allows {} (outbound_hosts)",
                self.allowed
            ));
        }
        let grant = || Grant { hosts: Arc::new(asked.clone()), connector: Arc::clone(&self.connector) };
        Ok((!asked.is_empty()).then(grant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_a_host_that_is_not_allowed_is_told_which() {
        let hosts = |text: &str| text.parse::<HostPatterns>().unwrap();
        let outbound = Outbound::new(hosts("*.example.com"));
        assert!(outbound.grant(&hosts("")).unwrap().is_none());
        assert!(outbound.grant(&hosts("a.example.com")).unwrap().is_some());
        let refused = outbound.grant(&hosts("a.example.com, b.test")).err().unwrap();
        assert!(refused.contains("'b.test'") && refused.contains("*.example.com (outbound_hosts)"), "{refused}");
        let refused = Outbound::new(hosts("")).grant(&hosts("b.test")).err().unwrap();
        assert!(refused.contains("it allows none"), "{refused}");
    }
}
