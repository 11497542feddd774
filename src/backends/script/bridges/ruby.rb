# The bridge between blk and an nbdkit plugin written in Ruby: it speaks docs/exec-protocol.md on descriptor 3 and calls
# the methods of the script named by its first argument. Given to the interpreter by blk; nothing is installed.
module Nbdkit
  FLAG_MAY_TRIM, FLAG_FUA, FLAG_REQ_ONE, FLAG_FAST_ZERO = 1, 2, 4, 8
  @error = 0
  class << self
    attr_reader :error

    # A class or an object of SystemCallError, or a number.
    def set_error(reason)
      @error = if reason.is_a?(Integer) then reason
               elsif reason.respond_to?(:errno) then reason.errno
               elsif reason.is_a?(Class) && reason.const_defined?(:Errno) then reason::Errno
               else raise TypeError, "set_error: no errno in #{reason.inspect}"
               end
    end

    def forget_error
      @error = 0
    end

    def debug(text)
      BlkBridge.message("debug", text.to_s)
    end
  end
end

module BlkBridge
  REQUIRED = %w[open get_size pread].freeze
  METHODS = (REQUIRED + %w[config config_complete get_ready after_fork list_exports default_export preconnect close
    export_description block_size is_rotational can_multi_conn can_write can_flush can_trim can_zero can_fast_zero can_fua
    can_cache can_extents pwrite flush trim zero cache extents]).freeze
  QUESTIONS = %w[is_rotational can_multi_conn can_write can_flush can_trim can_zero can_fast_zero can_extents].freeze
  SUPPORT = %w[none emulate native].freeze
  ERRNO = Errno.constants.map { |name| Errno.const_get(name) }.select { |each| each.is_a?(Class) && each.const_defined?(:Errno) }
               .to_h { |each| [each::Errno, each.name.split("::").last] }

  @channel = IO.for_fd(3, "r+b")
  @channel.sync = true
  @script = TOPLEVEL_BINDING.receiver
  @handles = {}
  @last_handle = 0
  @buffer = String.new(encoding: Encoding::BINARY)
  @replies = String.new(encoding: Encoding::BINARY)

  class << self
    def message(kind, text)
      data = text.b
      @replies << "- #{kind} #{data.bytesize}\n" << data
    end

    def send_replies
      data, @replies = @replies, String.new(encoding: Encoding::BINARY)
      until data.empty?
        sent = @channel.syswrite(data)
        data = data.byteslice(sent..)
      end
    rescue Errno::EPIPE
      exit 0
    end

    def fill
      @buffer << @channel.readpartial(256 << 10)
    rescue EOFError, Errno::ECONNRESET
      exit 0
    end

    def plain(word)
      return "" if word == "-"
      word.gsub(/%(\h\h)/) { $1.hex.chr }.force_encoding(Encoding::UTF_8)
    end

    # Methods of this bridge's own modules, and of Ruby's (open), are none of the script's.
    def has?(name)
      @names.include?(name)
    end

    def load_script
      path = ARGV.shift
      $0 = path
      before = Object.private_instance_methods(false) + Object.instance_methods(false)
      Kernel.load(path)
      @names = (Object.private_instance_methods(false) + Object.instance_methods(false) - before).map(&:to_s)
      lacking = REQUIRED.reject { |name| has?(name) }
      raise "the script does not define #{lacking.join(", ")}; open, get_size and pread are needed" unless lacking.empty?
      (METHODS.select { |name| has?(name) } + %w[magic_config_key dump_plugin unload]).join(" ")
    end

    def call(name, *arguments)
      @script.send(name, *arguments)
    end

    def dump_plugin
      puts "ruby_api_version=#{RUBY_VERSION}"
      call("dump_plugin") if has?("dump_plugin")
      ""
    end

    # [kind of the answer, output]
    def answer(method, words, data)
      case method
      when "load" then return ["ok", load_script]
      when "magic_config_key" then return ["ok", "script"]
      when "dump_plugin" then return ["ok", dump_plugin]
      when "unload" then return ["ok", ""]
      end
      return ["missing", ""] unless has?(method)
      case method
      when "config"
        call("config", *words.map { |word| plain(word) })
        ["ok", ""]
      when "list_exports"
        entries = call(method, *words.map { |word| word == "true" })
        ["ok", "INTERLEAVED\n" + entries.map { |entry| Array(entry).values_at(0, 1).join("\n") + "\n" }.join]
      when "default_export" then ["ok", "NAMES\n#{call(method, *words.map { |word| word == "true" })}\n"]
      when "preconnect", "open" then open_or_preconnect(method, words[0] == "true")
      else words.empty? ? (call(method); ["ok", ""]) : of_handle(method, @handles[words[0]], words, data)
      end
    end

    def open_or_preconnect(method, readonly)
      value = call(method, readonly)
      return ["ok", ""] if method == "preconnect"
      raise "open returned nil" if value.nil?
      @handles[(@last_handle += 1).to_s] = value
      ["ok", @last_handle.to_s]
    end

    def of_handle(method, handle, words, data)
      count, offset = words[1].to_i, words[2].to_i
      case method
      when "pread"
        bytes = call(method, handle, count, offset).b
        raise "pread returned #{bytes.bytesize} bytes instead of #{count}" if bytes.bytesize < count
        return ["ok", bytes.byteslice(0, count)]
      when "pwrite" then call(method, handle, data, offset)
      when "extents" then return ["ok", call(method, handle, count, offset).map { |extent| extent.join(" ") + "\n" }.join]
      when "zero" then call(method, handle, count, offset, words[3].split(",").include?("may_trim"))
      when "trim", "cache" then call(method, handle, count, offset)
      when "flush" then call(method, handle)
      when "close"
        call(method, handle)
        @handles.delete(words[0])
      when "block_size" then return ["ok", call(method, handle).join(" ")]
      when "can_fua", "can_cache"
        value = call(method, handle)
        return ["ok", value.is_a?(Integer) ? SUPPORT[value] : value.to_s]
      else
        value = call(method, handle)
        return QUESTIONS.include?(method) ? [value ? "ok" : "false", ""] : ["ok", value.to_s]
      end
      ["ok", ""]
    end

    def reply(id, method, words, data)
      Nbdkit.forget_error
      begin
        kind, output = answer(method, words, data)
      rescue Exception => failure # rubocop:disable Lint/RescueException -- whatever a script does, the bridge goes on
        where = failure.backtrace&.find { |line| line.start_with?($0) }
        text = "#{failure.class}: #{failure.message}#{where ? " (#{File.basename(where)})" : ""}".gsub("\n", "; ")
        kind, output = "error", "#{Nbdkit.error.zero? ? "EIO" : ERRNO[Nbdkit.error] || "EIO"} #{text}"
      end
      output = output.b
      @replies << "#{id} #{kind} #{output.bytesize}\n" << output
    end

    def run
      $stdout.sync = true
      loop do
        line_end = @buffer.index("\n")
        unless line_end
          send_replies
          fill
          next
        end
        id, method, length, *words = @buffer.byteslice(0, line_end).split(" ")
        length = length.to_i
        fill while @buffer.bytesize < line_end + 1 + length
        data = @buffer.byteslice(line_end + 1, length)
        @buffer = @buffer.byteslice((line_end + 1 + length)..)
        reply(id, method, words, data)
        send_replies if @replies.bytesize > 256 << 10
      end
    end
  end
end

BlkBridge.run
