//! Plots as SVG, written by hand: lines over two logarithmic axes, and bars.

use std::fmt::Write;

use crate::figures::shown;

const WIDTH: f64 = 760.0;
const COLOURS: [&str; 6] = ["#8b949e", "#57606a", "#cf222e", "#0969da", "#bf8700", "#8250df"];

pub struct Series {
    pub name: &'static str,
    /// Which of the colours.
    pub colour: usize,
    pub points: Vec<(f64, f64)>,
}

/// Lines, both axes logarithmic.
pub fn lines(title: &str, x_title: &str, y_title: &str, series: &[Series]) -> String {
    const HEIGHT: f64 = 420.0;
    let (left, right, top, bottom) = (70.0, WIDTH - 190.0, 50.0, HEIGHT - 60.0);
    let all = || series.iter().flat_map(|series| &series.points);
    let (x_from, x_to) = decades(all().map(|point| point.0));
    let (y_from, y_to) = decades(all().map(|point| point.1));
    let x = |value: f64| left + (value.log10() - x_from) / (x_to - x_from) * (right - left);
    let y = |value: f64| bottom - (value.log10() - y_from) / (y_to - y_from) * (bottom - top);
    let mut svg = begin(HEIGHT, title);
    for decade in x_from as i32..=x_to as i32 {
        let value = 10f64.powi(decade);
        line(&mut svg, x(value), top, x(value), bottom);
        text(&mut svg, x(value), bottom + 20.0, "middle", &plain(value));
    }
    for decade in y_from as i32..=y_to as i32 {
        let value = 10f64.powi(decade);
        line(&mut svg, left, y(value), right, y(value));
        text(&mut svg, left - 8.0, y(value) + 4.0, "end", &plain(value));
    }
    text(&mut svg, f64::midpoint(left, right), HEIGHT - 18.0, "middle", x_title);
    text(&mut svg, left, top - 10.0, "start", y_title);
    let mut labels: Vec<(f64, &Series)> = Vec::new();
    for series in series {
        let path: Vec<String> = series.points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
        let colour = COLOURS[series.colour];
        let _ =
            writeln!(svg, r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, path.join(" "));
        if let Some((_, last)) = series.points.last() {
            labels.push((y(*last), series));
        }
    }
    // Labels at the ends of their lines, moved apart.
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = top;
    for (at, series) in labels {
        let at = at.max(free);
        free = at + 16.0;
        coloured(&mut svg, right + 8.0, at + 4.0, series.colour, series.name);
    }
    svg + "</svg>\n"
}

/// Bars in groups; a line across at `mark`, if there is one.
pub fn bars(title: &str, groups: &[(String, Vec<(usize, &str, f64)>)], mark: Option<f64>) -> String {
    const BAR: f64 = 17.0;
    let rows: usize = groups.iter().map(|(_, bars)| bars.len() + 1).sum();
    let (left, right, top) = (190.0, WIDTH - 80.0, 40.0);
    let longest = groups.iter().flat_map(|(_, bars)| bars.iter().map(|bar| bar.2)).fold(0.0, f64::max);
    // What is off the scale is cut, and says so.
    let scale = mark.map_or(longest, |mark| longest.min(mark * 6.0));
    let height = top + rows as f64 * BAR + 20.0;
    let mut svg = begin(height, title);
    let mut at = top;
    for (group, bars) in groups {
        at += BAR;
        let _ = writeln!(svg, r#"<text x="10" y="{:.1}" font-weight="600">{group}</text>"#, at - 4.0);
        for (colour, name, value) in bars {
            let width = (value / scale).min(1.0) * (right - left);
            text(&mut svg, left - 8.0, at + 13.0, "end", name);
            let colour = COLOURS[*colour];
            let _ = writeln!(
                svg,
                r#"<rect x="{left}" y="{:.1}" width="{width:.1}" height="{:.1}" fill="{colour}"/>"#,
                at + 2.0,
                BAR - 4.0
            );
            let more = if *value > scale { " →" } else { "" };
            text(&mut svg, left + width + 6.0, at + 13.0, "start", &format!("{}{more}", shown(*value)));
            at += BAR;
        }
    }
    if let Some(mark) = mark {
        let x = left + mark / scale * (right - left);
        line(&mut svg, x, top, x, height - 10.0);
    }
    svg + "</svg>\n"
}

/// The powers of ten around all values.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (from, to) = values.fold((f64::MAX, f64::MIN), |(from, to), value| (from.min(value), to.max(value)));
    (from.log10().floor(), to.log10().ceil())
}

fn plain(value: f64) -> String {
    if value < 1.0 { value.to_string() } else { shown(value).trim_end_matches(".00").trim_end_matches(".0").to_owned() }
}

fn begin(height: f64, title: &str) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12">
<style>text {{ fill: #24292f }} line {{ stroke: #8b949e; stroke-opacity: .4 }} @media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} }}</style>
<text x="10" y="22" font-size="15" font-weight="600">{title}</text>
"##
    )
}

fn line(svg: &mut String, x1: f64, y1: f64, x2: f64, y2: f64) {
    let _ = writeln!(svg, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#);
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
}

fn coloured(svg: &mut String, x: f64, y: f64, colour: usize, text: &str) {
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" style="fill: {}">{text}</text>"#, COLOURS[colour]);
}
