# The bridge between blk and an nbdkit plugin written in Perl: it speaks docs/exec-protocol.md on descriptor 3 and calls
# the subroutines of the script named by its first argument. Given to the interpreter by blk; nothing is installed.
package Nbdkit;
use strict;
use warnings;
our ($FLAG_MAY_TRIM, $FLAG_FUA, $FLAG_REQ_ONE, $FLAG_FAST_ZERO) = (1, 2, 4, 8);
our ($error, $demand) = (0, "");
sub set_error { $error = 0 + shift; }
sub debug { BlkBridge::message("debug", shift); }
sub shutdown { $demand = "shutdown"; }

package BlkBridge;
use Errno ();
CORE::open(my $channel, "+<&=", 3) or die "no channel: $!";
binmode $channel;

my @required = qw(open get_size pread);
my @methods = (@required, qw(config config_complete get_ready after_fork list_exports default_export preconnect close
    export_description block_size is_rotational can_multi_conn can_write can_flush can_trim can_zero can_fast_zero can_fua
    can_cache can_extents pwrite flush trim zero cache extents));
my %question = map { $_ => 1 } qw(is_rotational can_multi_conn can_write can_flush can_trim can_zero can_fast_zero can_extents);
my %flags = (may_trim => 1, fua => 2, req_one => 4, fast => 8);
my @support = qw(none emulate native);
my %errno = map { Errno->can($_)->() => $_ } qw(EPERM EIO ENOMEM EINVAL ENOSPC EOVERFLOW ESHUTDOWN EOPNOTSUPP EROFS EDQUOT
    EFBIG ENOENT EACCES EBUSY EEXIST EAGAIN ENODEV ENXIO EPIPE ERANGE ETIMEDOUT ENOSYS);
my (%handles, $last_handle);
my $buffer = "";
my $replies = "";

sub transmit {
    my $bytes = shift;
    my $done = 0;
    while ($done < length $bytes) {
        my $sent = syswrite $channel, $bytes, length($bytes) - $done, $done;
        exit 0 unless defined $sent;
        $done += $sent;
    }
}

sub octets { my $text = shift; utf8::encode($text) if utf8::is_utf8($text); return $text; }

sub message {
    my ($kind, $text) = @_;
    $text = octets("$text");
    $replies .= sprintf("- %s %d\n", $kind, length $text) . $text;
}

sub fill {
    my $got = sysread $channel, $buffer, 256 << 10, length $buffer;
    exit 0 unless $got;
}

sub plain {
    my $word = shift;
    return "" if $word eq "-";
    $word =~ s/%([0-9a-fA-F]{2})/chr hex $1/ge;
    return $word;
}

sub flags_of {
    my $word = shift // "-";
    my $result = 0;
    $result |= $flags{$_} // 0 for split /,/, $word;
    return $result;
}

sub load {
    my $path = shift @ARGV;
    $0 = $path;
    {
        package main;
        local ($@, $!);
        my $done = do $path;
        die $@ if $@;
        die "cannot read $path: $!\n" if !defined $done && $!;
    }
    my @lacking = grep { !defined &{"main::$_"} } @required;
    die "the script does not define @lacking; open, get_size and pread are needed\n" if @lacking;
    return join " ", (grep { defined &{"main::$_"} } @methods), qw(magic_config_key dump_plugin unload);
}

sub call_script {
    my ($name, @arguments) = @_;
    no strict "refs";
    return &{"main::$name"}(@arguments);
}

sub truth { return $_[0] eq "true"; }

# The kind of the answer, and its output.
sub answer {
    my ($method, $words, $data) = @_;
    return ("ok", load()) if $method eq "load";
    return ("ok", "script") if $method eq "magic_config_key";
    if ($method eq "dump_plugin") {
        printf "perl_version=%vd\n", $^V;
        call_script("dump_plugin") if defined &main::dump_plugin;
        return ("ok", "");
    }
    return ("ok", "") if $method eq "unload";
    return ("missing", "") unless defined &{"main::$method"};
    return ("ok", scalar(call_script($method, map { plain($_) } @$words)) && "") if $method eq "config";
    if ($method eq "list_exports" || $method eq "default_export" || $method eq "preconnect") {
        my @result = call_script($method, map { truth($_) } @$words);
        return ("ok", $method eq "preconnect" ? "" : "NAMES\n$result[0]\n") unless $method eq "list_exports";
        return ("ok", join "", "INTERLEAVED\n", map { ref $_ ? "$$_[0]\n$$_[1]\n" : "$_\n\n" } @result);
    }
    if ($method eq "open") {
        my $handle = call_script("open", truth($$words[0]));
        die "open returned nothing\n" unless defined $handle;
        $handles{++$last_handle} = $handle;
        return ("ok", $last_handle);
    }
    return ("ok", scalar(call_script($method)) && "") unless @$words;
    my $handle = $handles{$$words[0]};
    if ($method eq "pread") {
        my $result = octets(call_script("pread", $handle, $$words[1], $$words[2], 0));
        die sprintf("pread returned %d bytes instead of %d\n", length $result, $$words[1]) if length $result < $$words[1];
        return ("ok", substr $result, 0, $$words[1]);
    }
    if ($method eq "pwrite") {
        call_script("pwrite", $handle, $data, $$words[2], flags_of($$words[3]));
        return ("ok", "");
    }
    if ($method eq "extents") {
        my @result = call_script("extents", $handle, $$words[1], $$words[2], flags_of($$words[3]));
        return ("ok", join "", map { join(" ", @$_) . "\n" } @result);
    }
    if ($method eq "trim" || $method eq "zero" || $method eq "cache") {
        call_script($method, $handle, $$words[1], $$words[2], flags_of($$words[3]));
        return ("ok", "");
    }
    if ($method eq "flush" || $method eq "close") {
        call_script($method, $handle, $method eq "flush" ? 0 : ());
        delete $handles{$$words[0]} if $method eq "close";
        return ("ok", "");
    }
    return ("ok", join " ", call_script($method, $handle)) if $method eq "block_size";
    my $result = call_script($method, $handle);
    return ($result ? "ok" : "false", "") if $question{$method};
    return ("ok", $support[$result] // $result) if $method eq "can_fua" || $method eq "can_cache";
    return ("ok", octets("$result"));
}

sub reply {
    my ($id, $method, $words, $data) = @_;
    ($Nbdkit::error, $Nbdkit::demand) = (0, "");
    my ($kind, $output) = eval { answer($method, $words, $data) };
    if (my $failure = $@) {
        $failure = octets("$failure");
        $failure =~ s/\s+\z//;
        $failure =~ s/\n/; /g;
        ($kind, $output) = ("error", ($errno{$Nbdkit::error} // "EIO") . " " . $failure);
    }
    $output //= "";
    $replies .= sprintf("%s %s %d %s\n", $id, $kind, length $output, $Nbdkit::demand) . $output;
}

$| = 1;
for (;;) {
    my $end = index $buffer, "\n";
    if ($end < 0) {
        transmit($replies);
        $replies = "";
        fill();
        next;
    }
    my ($id, $method, $length, @words) = split / /, substr($buffer, 0, $end);
    substr($buffer, 0, $end + 1, "");
    fill() while length $buffer < $length;
    my $data = $length ? substr($buffer, 0, $length, "") : "";
    reply($id, $method, \@words, $data);
    if (length $replies > 256 << 10) {
        transmit($replies);
        $replies = "";
    }
}
