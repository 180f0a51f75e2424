//! Where the services of a cloud are, as Keystone tells with each token: one endpoint is chosen, or none.

use serde::Deserialize;

use crate::address::Address;
use crate::manager::KeyError;

use super::answer::printable;

/// Which of a service's endpoints is taken.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Interface {
    #[default]
    Public,
    Internal,
    Admin,
}

impl Interface {
    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Admin => "admin",
        }
    }
}

/// The key manager's endpoint in a catalog.
pub(crate) fn endpoint(
    catalog: &[Service],
    region: Option<&str>,
    interface: Interface,
) -> Result<Address, KeyError> {
    let all = catalog.iter().filter(|service| service.kind == "key-manager").flat_map(|it| &it.endpoints);
    let of_interface: Vec<_> = all.filter(|endpoint| endpoint.interface == interface.name()).collect();
    let regions = || {
        let mut regions: Vec<_> = of_interface.iter().filter_map(|endpoint| endpoint.region()).collect();
        regions.sort_unstable();
        regions.dedup();
        // Enough to choose from, whatever the catalog holds.
        regions.iter().take(8).map(|region| printable(region)).collect::<Vec<_>>().join(", ")
    };
    let mut fitting =
        of_interface.iter().filter(|it| region.is_none_or(|region| it.region() == Some(region)));
    let Some(first) = fitting.next() else {
        let place = region.map_or(String::new(), |region| format!(" in region {region}"));
        return Err(KeyError::Settings(format!(
            "the catalog has no key-manager with a {} endpoint{place}; regions that have one: {}",
            interface.name(),
            if of_interface.is_empty() { "none".to_owned() } else { regions() }
        )));
    };
    if fitting.any(|other| other.url != first.url) {
        return Err(KeyError::Settings(format!(
            "the catalog has several key-managers; set region to one of: {}",
            regions()
        )));
    }
    Address::parse(&first.url).map_err(|why| {
        KeyError::Settings(format!("the catalog's address of the key-manager: {why}; endpoint sets another"))
    })
}

#[derive(Deserialize)]
pub(crate) struct Service {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
pub(crate) struct Endpoint {
    interface: String,
    url: String,
    region: Option<String>,
    region_id: Option<String>,
}

impl Endpoint {
    fn region(&self) -> Option<&str> {
        self.region_id.as_deref().or(self.region.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(endpoints: &str) -> Vec<Service> {
        serde_json::from_str(&format!(r#"[{{"type": "key-manager", "endpoints": [{endpoints}]}}]"#)).unwrap()
    }

    #[test]
    fn the_endpoint_is_the_one_of_region_and_interface_or_none() {
        let two = catalog(
            r#"{"interface": "public", "url": "https://one/", "region_id": "R1", "region": "R1"},
               {"interface": "internal", "url": "https://inner", "region_id": "R1"},
               {"interface": "public", "url": "https://two", "region": "R2"}"#,
        );
        let of = |region, interface| endpoint(&two, region, interface).map(|it| it.to_string());
        assert_eq!(of(Some("R1"), Interface::Public).unwrap(), "https://one");
        assert_eq!(of(Some("R2"), Interface::Public).unwrap(), "https://two");
        assert_eq!(of(None, Interface::Internal).unwrap(), "https://inner");
        let told = of(None, Interface::Public).unwrap_err().to_string();
        assert!(told.ends_with("set region to one of: R1, R2"), "{told}");
        let told = of(Some("R3"), Interface::Public).unwrap_err().to_string();
        assert!(told.contains("no key-manager with a public endpoint in region R3"), "{told}");
        let told = endpoint(&[], None, Interface::Admin).err().unwrap().to_string();
        assert!(told.ends_with("none"), "{told}");
    }

    #[test]
    fn an_address_from_the_catalog_is_judged_like_any_other() {
        for url in ["http://keys.example", "file:///etc/passwd", "https://user@keys.example"] {
            let catalog = catalog(&format!(r#"{{"interface": "public", "url": "{url}"}}"#));
            let error = endpoint(&catalog, None, Interface::Public).unwrap_err();
            assert!(matches!(error, KeyError::Settings(_)), "{error}");
        }
    }
}
