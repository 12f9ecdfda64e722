//! What a running edgecam says of itself.

use std::net::SocketAddr;
use std::time::Duration;

use ureq::Agent;
use ureq::http::header::AUTHORIZATION;

/// Fetches a path of the edgecam at this address: status and body. Blocks for up to some seconds.
///
/// # Errors
/// In words, why nothing came.
pub fn get(address: SocketAddr, path: &str, token: Option<&str>) -> Result<(u16, String), String> {
    let config = Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .build();
    let mut request = config.new_agent().get(format!("http://{address}{path}"));
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let mut response = request.call().map_err(|error| error.to_string())?;
    let body = response.body_mut().with_config().limit(LARGEST).read_to_string().map_err(|error| error.to_string())?;
    Ok((response.status().as_u16(), body))
}

const PATIENCE: Duration = Duration::from_secs(3);
const LARGEST: u64 = 1024 * 1024;
