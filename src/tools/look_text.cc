// The texts of look.h.
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "src/core/param_text.h"
#include "src/core/units.h"
#include "src/tools/look.h"
#include "src/tools/terminal_colour.h"

namespace blk {
namespace {

struct Feature {
  std::string_view key;
  uint16_t flag;
  bool is_ability;  // shown green or red
};
// In the order in which they are printed.
constexpr Feature kFeatures[] = {{"is_rotational", nbd::kFlagRotational, false},
                                 {"is_read_only", nbd::kFlagReadOnly, false},
                                 {"can_block_status_payload", nbd::kFlagBlockStatusPayload, true},
                                 {"can_cache", nbd::kFlagSendCache, true},
                                 {"can_df", nbd::kFlagSendDf, true},
                                 {"can_fast_zero", nbd::kFlagSendFastZero, true},
                                 {"can_flush", nbd::kFlagSendFlush, true},
                                 {"can_fua", nbd::kFlagSendFua, true},
                                 {"can_multi_conn", nbd::kFlagCanMultiConn, true},
                                 {"can_trim", nbd::kFlagSendTrim, true},
                                 {"can_zero", nbd::kFlagSendWriteZeroes, true}};

std::string_view TrueOrFalse(bool value) { return value ? "true" : "false"; }

// Those that this connection could have at all.
std::vector<Feature> FeaturesOf(const Findings& findings) {
  std::vector<Feature> features;
  for (const Feature& feature : kFeatures) {
    bool known = feature.flag != nbd::kFlagBlockStatusPayload ||
                 findings.style == nbd::ReplyStyle::kExtended;
    if (known) features.push_back(feature);
  }
  return features;
}

// Control characters of strangers do not reach the terminal.
std::string Printable(std::string_view text) {
  std::string result;
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 32 || c == 127) {
      absl::StrAppendFormat(&result, "\\x%02x", static_cast<unsigned char>(c));
    } else {
      result += c;
    }
  }
  return result;
}

std::string SizeText(uint64_t size) {
  std::string exact = absl::StrCat(size), human = FormatSize(size);
  return exact == human ? exact : absl::StrCat(exact, " (", human, ")");
}

void AppendExport(const Findings& findings, const ExportReport& report, ColourText* out) {
  std::string& text = out->text();
  auto line = [&text](auto... parts) { absl::StrAppend(&text, "\t", parts..., "\n"); };
  out->Set(colour::kBold);
  absl::StrAppend(&text, "export=", JsonQuote(report.name), ":\n");
  if (!report.description.empty()) line("description: ", Printable(report.description));
  line("export-size: ", SizeText(report.size));
  if (report.content) line("content: ", Printable(*report.content));
  if (!report.uri.empty()) line("uri: ", report.uri);
  out->Restore();
  out->Set(colour::kGrey);
  if (report.contexts) {
    line("contexts:");
    for (const std::string& context : *report.contexts) line("\t", Printable(context));
  }
  for (const Feature& feature : FeaturesOf(findings)) {
    bool yes = report.flags & feature.flag;
    if (feature.is_ability) out->Set(yes ? colour::kGreen : colour::kRed);
    line(feature.key, ": ", TrueOrFalse(yes));
    if (feature.is_ability || feature.flag == nbd::kFlagRotational) out->Restore();
  }
  if (!report.block_sizes) return;
  line("block_size_minimum: ", report.block_sizes->minimum);
  line("block_size_preferred: ", report.block_sizes->preferred);
  line("block_size_maximum: ", report.block_sizes->maximum);
}

std::string ExportJson(const Findings& findings, const ExportReport& report) {
  std::vector<std::string> rows;
  auto raw = [&rows](std::string_view key, auto value) {
    rows.push_back(absl::StrCat("\t\"", key, "\": ", value));
  };
  auto text = [&raw](std::string_view key, std::string_view value) { raw(key, JsonQuote(value)); };
  text("export-name", report.name);
  if (!report.description.empty()) text("description", report.description);
  if (report.content) text("content", *report.content);
  if (!report.uri.empty()) text("uri", report.uri);
  if (report.contexts) {
    std::vector<std::string> names;
    for (const std::string& context : *report.contexts)
      names.push_back(absl::StrCat("\t\t", JsonQuote(context)));
    raw("contexts",
        absl::StrCat("[\n", absl::StrJoin(names, ",\n"), names.empty() ? "" : "\n", "\t]"));
  }
  for (const Feature& feature : FeaturesOf(findings))
    raw(feature.key, TrueOrFalse(report.flags & feature.flag));
  if (report.block_sizes) {
    raw("block_size_minimum", report.block_sizes->minimum);
    raw("block_size_preferred", report.block_sizes->preferred);
    raw("block_size_maximum", report.block_sizes->maximum);
  }
  raw("export-size", report.size);
  text("export-size-str", FormatSize(report.size));
  return absl::StrCat("\t{\n", absl::StrJoin(rows, ",\n"), "\n\t}");
}

}  // namespace

std::string ServerText(const Findings& findings, bool colour) {
  if (!findings.nbd) return "";
  constexpr std::string_view kPackets[] = {"simple", "structured", "extended"};
  ColourText out(colour);
  out.Set(colour::kGrey);
  absl::StrAppend(&out.text(), "protocol: ", findings.protocol, " ",
                  findings.tls ? "with" : "without", " TLS, using ",
                  kPackets[static_cast<int>(findings.style)], " packets\n");
  out.Restore();
  return out.text();
}

std::string FindingsText(const Findings& findings, bool colour) {
  ColourText out(colour);
  out.text() = ServerText(findings, colour);
  for (const ExportReport& report : findings.exports) AppendExport(findings, report, &out);
  return out.text();
}

std::string FindingsJson(const Findings& findings) {
  std::string text = "{\n";
  if (findings.nbd) {
    absl::StrAppend(&text, "\"protocol\": ", JsonQuote(findings.protocol),
                    ",\n\"TLS\": ", TrueOrFalse(findings.tls),
                    ",\n\"structured\": ", TrueOrFalse(findings.style != nbd::ReplyStyle::kSimple),
                    ",\n");
  }
  std::vector<std::string> objects;
  for (const ExportReport& report : findings.exports)
    objects.push_back(ExportJson(findings, report));
  if (objects.empty()) return text + "\"exports\": []\n}\n";
  return absl::StrCat(text, "\"exports\": [\n", absl::StrJoin(objects, ",\n"), " ]\n}\n");
}

}  // namespace blk
